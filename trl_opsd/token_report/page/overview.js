// Overview of the chosen step: numbers that Python has counted.

function showOverview() {
  const { summary, checks, step } = group();
  byId('headline').replaceChildren(...headline(summary));
  byId('figures').replaceChildren(...figures(summary));
  byId('where').replaceChildren(positions(summary), gaps(summary));
  byId('tables').replaceChildren(rather(summary), costly(summary));
  byId('more').replaceChildren(...[series(), stops(summary), checkList(checks)].filter(Boolean));
  markStep(step);
}

function headline({ wanted, first, rather }) {
  if (!wanted) return ['The teacher would write what the student wrote.'];
  const named = wanted.students.flatMap((text, i) => [i ? ', ' : '', tokenText(text)]);
  const more = rather.filter((row) => row.teacher === wanted.teacher).length > wanted.students.length ? ' and others' : '';
  const where = first > 0.1 ? ` The first token alone carries ${percent(first)}.` : '';
  return [
    'The teacher would rather write ', tokenText(wanted.teacher), ' where the student wrote ', ...named,
    `${more}: ${plural(wanted.count, 'time')}, ${percent(wanted.cost)} of the divergence.`, where,
  ];
}

function figures(summary) {
  const rows = [
    [percent(summary.taught), 'of the tokens taught', `${plural(summary.tokens, 'token')} of ${plural(summary.rollouts, 'rollout')}`],
    [number(summary.divergence), 'nats of divergence', summary.estimated ? 'mean a token, estimated from the samples' : 'mean a token'],
    [percent(summary.first), 'on the first token', 'share of the divergence'],
    [percent(summary.clipped), 'of them clipped', 'less loss than divergence'],
    [percent(summary.leaked), 'of the rollouts leak', 'they give the context away'],
  ];
  if (summary.success != null) rows.push([percent(summary.success), 'successful', 'share of the rollouts']);
  return rows.map(([value, name, note]) => el('div', {}, el('dd', {}, value), el('dt', {}, name, el('small', {}, note))));
}

function partTable(parts, head) {
  const most = Math.max(...parts.map((part) => Math.max(part.cost, part.tokens)), 1e-9);
  const rows = parts.map((part) => [
    el('th', { scope: 'row' }, part.label),
    barCell(part.cost / most, percent(part.cost), 'blue'),
    barCell(part.tokens / most, percent(part.tokens), 'grey'),
    number(part.mean),
  ]);
  return table([head, 'of the divergence', 'of the tokens', 'nats a token'], rows, head);
}

function positions(summary) {
  return card('Where it teaches', 'Share of the divergence by place in the completion, beside the share of the tokens there.',
    partTable(summary.positions, 'token'), partTable(summary.quarters, 'completion'));
}

function gaps(summary) {
  const edges = [...DATA.edges].reverse().map((edge) => -edge).concat(DATA.edges);
  const most = Math.max(...summary.gaps, 1), half = DATA.edges.length, whole = Math.max(1, sum(summary.gaps));
  const rows = summary.gaps.map((count, i) => {
    const from = edges[i - 1], to = edges[i];
    const label = from == null ? `under ${number(to)}` : to == null ? `over ${number(from)}` : `${number(from)} to ${number(to)}`;
    return [el('th', { scope: 'row' }, label), barCell(count / most, percent(count / whole), levelClass(i - half)), count.toLocaleString('en')];
  });
  const note = 'Teacher’s less student’s log-probability of the written token, in nats. Above 0 (blue, solid line) the teacher likes it more than the student did; below (orange, dashed) less.';
  return card('Does the teacher agree?', note, table(['gap', 'of the tokens', 'tokens'], rows.reverse(), 'Gaps'),
    el('p', { class: 'note' }, `Mean gap ${number(summary.gap)} nats.`));
}

function rather(summary) {
  const most = Math.max(...summary.rather.map((row) => row.cost), 1e-9);
  const rows = summary.rather.map((row) => [
    el('td', {}, tokenText(row.student)), el('td', {}, tokenText(row.teacher)), barCell(row.cost / most, percent(row.cost), 'blue'), row.count.toLocaleString('en'), number(row.gap),
  ]);
  return card('The teacher would rather write', 'Tokens of the student, and the teacher’s likeliest token there, by their share of the divergence.',
    table(['student', 'teacher', 'of the divergence', 'times', 'mean gap'], rows, 'The teacher would rather write'));
}

function costly(summary) {
  const most = Math.max(...summary.costly.map((row) => row.cost), 1e-9);
  const rows = summary.costly.map((row) => [
    el('td', {}, tokenText(row.text)), barCell(row.cost / most, percent(row.cost), 'blue'), row.count.toLocaleString('en'), number(row.divergence),
  ]);
  return card('Tokens that cost most', 'Tokens of the student by their summed divergence.',
    table(['student', 'of the divergence', 'times', 'nats'], rows, 'Tokens that cost most'));
}

// All groups of a series that asks for the same prompts
function series() {
  if (!group().fixed || members().length < 2) return null;
  const known = members().some(({ summary }) => summary.success != null);
  const most = Math.max(...members().map(({ summary }) => summary.divergence), 1e-9);
  const rows = members().map(({ label, summary }) => [
    el('th', { scope: 'row' }, label), barCell(summary.divergence / most, number(summary.divergence), 'blue'), percent(summary.first),
    number(summary.tokens / Math.max(1, summary.rollouts)), ...(known ? [percent(summary.success)] : []),
  ]);
  return card('What has changed', 'The same prompts with other weights.',
    table(['', 'nats a token', 'on the first', 'tokens', ...(known ? ['successful'] : [])], rows, 'What has changed'));
}

function stops({ stops: found }) {
  if (!found) return card('Stopping', 'No completion ends on a stop token, and the teacher wants none.');
  const rows = [
    !found.ends ? null : [el('th', { scope: 'row' }, 'where the student stopped'), percent(found.student_end), percent(found.teacher_end), found.ends.toLocaleString('en')],
    [el('th', { scope: 'row' }, found.ends ? 'everywhere before' : 'anywhere: all completions were cut'), percent(found.student_before), percent(found.teacher_before), found.others.toLocaleString('en')],
  ].filter(Boolean);
  const note = el('p', { class: 'note' }, 'Mean probability of ', ...found.texts.map(tokenText), ', at least: what lies beyond the lists is not counted.');
  return card('Stopping', '', note, table(['', 'student', 'teacher', 'tokens'], rows, 'Stopping'));
}

function checkList(checks) {
  const signs = { true: ['ok', '✓', 'passed'], false: ['bad', '✗', 'failed'], null: ['none', '–', 'does not apply'] };
  const items = checks.map((check) => {
    const [kind, sign, word] = signs[String(check.passed)];
    return el('li', { class: kind }, el('span', { class: 'mark', role: 'img', 'aria-label': word }, sign), el('span', {}, check.name, ' ', el('small', {}, check.detail)));
  });
  return card('Checks of this record', '', el('ul', { class: 'checks' }, ...items));
}
