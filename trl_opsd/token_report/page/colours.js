// What colours a token: a measure, its steps, and their classes.

const has = (column, i) => (Array.isArray(column) ? column[i] : column);
const shareOf = (view, i) => has(view.share, i) || 0;

// Value of a token: of one view, or of all of them by their shares in the loss
function overViews(rollout, i, view, value) {
  const views = rollout.views.filter((one) => (view ? one.name === view : true) && shareOf(one, i) > 0);
  const whole = sum(views.map((one) => shareOf(one, i)));
  if (!whole || views.some((one) => value(one) == null)) return null;
  return sum(views.map((one) => shareOf(one, i) * value(one))) / whole;
}

const MEASURES = {
  gap: {
    name: 'Gap', unit: 'nats', less: 'teacher likes it less', more: 'more', steps: DATA.edges, signed: true,
    about: 'Teacher’s less student’s log-probability of the written token.',
    of: (r, i, view) => (r.p[i] == null ? null : overViews(r, i, view, (one) => one.q[i] == null ? null : one.q[i] - r.p[i])),
  },
  divergence: {
    name: 'Divergence', unit: 'nats', more: 'more to learn', steps: [0.1, 0.5, 1, 2, 4],
    about: 'How far the student’s whole distribution is from the teacher’s, before any clip.',
    of: (r, i, view) => overViews(r, i, view, (one) => one.divergence[i]),
  },
  loss: {
    name: 'Loss', unit: 'nats', more: 'trained more', about: 'The divergence after the clips: what is trained.',
    of: (r, i, view) => overViews(r, i, view, (one) => one.loss[i]),
  },
  advantage: {
    name: 'Advantage', unit: '', less: 'discouraged', more: 'encouraged', signed: true,
    about: 'What the policy loss weighs the written token by.',
    of: (r, i) => (r.advantage ? r.advantage[i] : null),
  },
  student_entropy: {
    name: 'Student’s entropy', unit: 'nats', more: 'undecided', steps: [0.25, 0.5, 1, 2, 3],
    about: 'How undecided the student was.', of: (r, i) => r.entropy[i],
  },
  teacher_entropy: {
    name: 'Teacher’s entropy', unit: 'nats', more: 'undecided', steps: [0.25, 0.5, 1, 2, 3],
    about: 'How undecided the teacher was.',
    of: (r, i, view) => overViews(r, i, view, (one) => one.entropy[i]),
  },
};

const allRollouts = DATA.groups.flatMap((one) => one.rollouts);
if (!allRollouts.some((rollout) => rollout.advantage)) delete MEASURES.advantage;

// Steps of a measure without fixed ones: halves of the largest size in the file, so that all groups have the same
function stepsOf(measure) {
  if (measure.steps) return measure.steps;
  let most = 0;
  for (const rollout of allRollouts) {
    for (let i = 0; i < rollout.ids.length; i++) most = Math.max(most, Math.abs(measure.of(rollout, i, '') || 0));
  }
  measure.steps = [32, 16, 8, 4, 2].map((part) => Number((most / part).toPrecision(2)) || Number.MIN_VALUE);
  return measure.steps;
}

function levelOf(value, steps) {
  if (value == null) return null;
  const size = Math.abs(value), level = steps.filter((step) => step <= size).length;
  return value < 0 ? -level : level;
}

const levelClass = (level) => (level > 0 ? `b${level}` : level < 0 ? `o${-level}` : '');

function colourOf(rollout, i, view) {
  const measure = MEASURES[state.measure];
  return levelClass(levelOf(measure.of(rollout, i, view), stepsOf(measure)));
}

function showLegend() {
  const measure = MEASURES[state.measure], steps = stepsOf(measure);
  const chip = (level, text) => el('span', { class: `chip k ${levelClass(level)}` }, text);
  const below = measure.signed || allRollouts.some((rollout) => rollout.ids.some((_, i) => (measure.of(rollout, i, '') || 0) < -steps[0]));
  const chips = [chip(0, below ? '0' : `<${number(steps[0])}`), ...steps.map((step, i) => chip(i + 1, number(step)))];
  if (below) chips.unshift(...steps.map((step, i) => chip(-i - 1, number(-step))).reverse());
  byId('legend').replaceChildren(
    el('p', { class: 'note' }, measure.about),
    el('div', { class: 'chips' }, ...chips),
    el('p', { class: 'note ends' }, el('span', {}, measure.less || ''), el('span', {}, `${measure.more}${measure.unit ? `, ${measure.unit}` : ''} →`)),
  );
}

function buildColours() {
  const select = el('select', { id: 'measure' }, ...Object.entries(MEASURES).map(([name, one]) => el('option', { value: name }, one.name)));
  select.addEventListener('change', () => {
    state.measure = select.value;
    showLegend();
    recolour();
  });
  const kinds = [
    ['k untaught', 'not taught', (one) => one.ids.some((_, i) => one.p[i] == null && has(one.written, i) === 1)],
    ['k tool', 'tool result', (one) => one.ids.some((_, i) => has(one.written, i) === 0)],
    ['inserted', 'inserted hint', (one) => one.views.some((view) => view.start > 0)],
  ].filter(([, , holds]) => allRollouts.some(holds)).map(([kind, text]) => el('span', { class: kind }, text));
  byId('colours').append(el('label', { for: 'measure' }, 'Colour'), select, el('div', { id: 'legend' }), el('p', { class: 'kinds' }, ...kinds));
  showLegend();
}
