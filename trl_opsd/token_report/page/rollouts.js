// Rollouts as text. They are drawn when they come near the window; one listener serves all tokens.

const TEXTS = new Map(); // element of a text -> its rollout, view and tokens

function searched(rollout) {
  const found = new Set(), wanted = state.search;
  if (!wanted) return found;
  const whole = rollout.texts.join('').toLowerCase(), ends = [];
  rollout.texts.reduce((length, text) => (ends.push(length + text.length), length + text.length), 0);
  for (let at = whole.indexOf(wanted), i = 0; at >= 0; at = whole.indexOf(wanted, at + wanted.length)) {
    while (ends[i] <= at) i++;
    for (let k = i; k < ends.length && (k === i || ends[k - 1] < at + wanted.length); k++) found.add(k);
  }
  return found;
}

function classOf(rollout, i, view, hits) {
  const names = ['k'];
  if (has(rollout.written, i) === 0) names.push('tool');
  else if (rollout.p[i] == null || !rollout.views.some((one) => (!view || one.name === view) && shareOf(one, i) > 0)) names.push('untaught');
  else names.push(colourOf(rollout, i, view));
  if (CONTROL.test(rollout.texts[i])) names.push('control');
  if (rollout.texts[i] === '') names.push('piece');
  if (hits.has(i)) names.push('hit');
  return names.filter(Boolean).join(' ');
}

function insertedBefore(rollout, i, view) {
  return rollout.views.filter((one) => one.start === i && i > 0 && (!view || one.name === view)).map((one) => {
    const context = (one.prompt || []).filter(([, marked]) => marked).map(([text]) => text).join(' … ');
    return el('span', { class: 'inserted' }, `the teacher reads a hint here (${one.name})`, context ? el('bdi', {}, `: ${context}`) : '');
  });
}

function draw(text) {
  const known = TEXTS.get(text);
  if (!known || known.drawn) return;
  known.drawn = true;
  const { rollout, view } = known, hits = searched(rollout), parts = [];
  rollout.texts.forEach((piece, i) => {
    parts.push(...insertedBefore(rollout, i, view));
    const token = el('span', { class: classOf(rollout, i, view, hits), role: 'option', tabindex: i === known.at ? '0' : '-1' }, ...shown(piece, true));
    token.index = i;
    known.tokens.push(token);
    parts.push(token);
  });
  text.append(...parts);
  text.style.minHeight = '';
}

const NEAR = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { draw(entry.target); NEAR.unobserve(entry.target); }
}, { rootMargin: '800px' });

function recolour() {
  for (const { rollout, view, tokens, drawn } of TEXTS.values()) {
    if (!drawn) continue;
    const hits = searched(rollout);
    tokens.forEach((token, i) => (token.className = classOf(rollout, i, view, hits)));
  }
}

function textOf(rollout, view, name) {
  const text = el('div', { class: 'text', dir: 'auto', role: 'listbox', 'aria-label': name, 'aria-orientation': 'horizontal' });
  text.style.minHeight = `${Math.ceil(sum(rollout.texts.map((one) => one.length)) / 70) * 2}em`;
  TEXTS.set(text, { rollout, view, tokens: [], at: 0, drawn: false });
  NEAR.observe(text);
  return text;
}

function promptOf(title, pieces) {
  const body = el('pre', { dir: 'auto' }, ...pieces.map(([text, marked]) => (marked ? el('mark', {}, ...shown(text, true)) : el('span', {}, ...shown(text, true)))));
  return el('div', {}, el('h4', {}, title), body);
}

function promptsOf(rollout) {
  const details = el('details', { class: 'prompts' }, el('summary', {}, 'What each side reads'));
  details.addEventListener('toggle', () => {
    if (details.children.length > 1) return;
    const sides = [promptOf('The student reads', rollout.student_prompt)];
    for (const view of rollout.views) {
      const title = rollout.views.length > 1 ? `The teacher reads (${view.name})` : 'The teacher reads';
      sides.push(view.prompt ? promptOf(title, view.prompt) : el('div', {}, el('h4', {}, title), el('p', { class: 'note' }, 'Left out of this page.')));
    }
    details.append(el('div', { class: 'sides' }, ...sides));
  });
  return details;
}

function cardOf(rollout) {
  const taught = sum(rollout.ids.map((_, i) => overViews(rollout, i, '', (one) => one.divergence[i]) ?? 0));
  const facts = [plural(rollout.ids.length, 'token'), `${number(taught)} nats in all`];
  for (const [name, value] of Object.entries(rollout.rewards)) facts.push(`${name} ${number(value)}`);
  if (rollout.success != null) facts.push(rollout.success ? 'success' : 'no success');
  const name = `Rollout ${rollout.index + 1}`;
  const head = el('div', { class: 'head' }, el('h3', {}, name), el('p', { class: 'note' }, facts.join(' · ')));
  if (rollout.leak) head.append(el('p', { class: 'leak' }, 'Leak: ', el('bdi', {}, rollout.leak)));
  const columns = columnsOf(rollout);
  const texts = columns.map(([title, one, view]) => el('div', {}, title ? el('h4', {}, title) : null, textOf(one, view, [name, title].filter(Boolean).join(', '))));
  return el('article', { class: 'rollout' }, head, el('div', { class: columns.length > 1 ? 'texts side' : 'texts' }, ...texts), promptsOf(rollout));
}

// Texts of a card, as title, rollout and view: one, one for each view, or the same prompt's in the first group beside it
function columnsOf(rollout) {
  if (state.side && rollout.views.length > 1) return rollout.views.map((one) => [`View ${one.name}`, rollout, one.name]);
  const first = state.beside && state.place > 0 ? members()[0].rollouts.find((one) => one.index === rollout.index) : null;
  if (first) return [[members()[0].label, first, state.view], [group().label, rollout, state.view]];
  return [[state.view && `View ${state.view}`, rollout, state.view]];
}

// With `same`, the texts and the token that were in view stay so
function showRollouts(same = false) {
  const drawn = same ? [...TEXTS.values()].filter((known) => known.drawn).map((known) => known.rollout.index) : [];
  const token = same ? state.token : null;
  NEAR.disconnect();
  TEXTS.clear();
  const all = group().rollouts, chosen = all.filter(passes);
  const { label, temperature } = group();
  const some = chosen.length === all.length ? '' : `${chosen.length} of `;
  byId('count').textContent = `${some}${plural(all.length, 'rollout')}, ${label}${temperature === 1 ? '' : `, at temperature ${number(temperature)}`}`;
  byId('list').replaceChildren(...chosen.map(cardOf));
  for (const [text, known] of TEXTS) if (drawn.includes(known.rollout.index)) draw(text);
  const again = token && chosen.find((one) => one.index === token.index);
  if (again && token.i < again.ids.length) showToken(again, token.i, token.view);
  else hidePanel();
}

function drawAll() {
  for (const text of TEXTS.keys()) draw(text);
}
