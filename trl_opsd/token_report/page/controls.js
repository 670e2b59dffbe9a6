// Filters, the slider over steps, keyboard and pointer; then the page starts.

state.search = '';
const filters = {};

function passes(rollout) {
  const { success, leak, reward, least, view } = filters;
  if (success.value && String(rollout.success) !== success.value) return false;
  if (leak.value && String(Boolean(rollout.leak)) !== leak.value) return false;
  if (view && view.value && !rollout.views.some((one) => one.name === view.value)) return false;
  if (reward && least.value !== '' && !((rollout.rewards[reward.value] ?? -Infinity) >= Number(least.value))) return false;
  if (!state.search) return true;
  const prompts = [rollout.student_prompt, ...rollout.views.map((one) => one.prompt || [])];
  return [rollout.texts, ...prompts.map((pieces) => pieces.map(([text]) => text))].some((texts) => texts.join('').toLowerCase().includes(state.search));
}

function field(label, control) {
  const name = `filter-${label.toLowerCase().replace(/\W+/g, '-')}`;
  control.id = name;
  return el('div', {}, el('label', { for: name }, label), control);
}

function choice(options) {
  return el('select', {}, ...options.map(([value, text]) => el('option', { value }, text)));
}

function buildFilters() {
  const names = (of) => [...new Set(allRollouts.flatMap(of))];
  const views = names((rollout) => rollout.views.map((view) => view.name)), rewards = names((rollout) => Object.keys(rollout.rewards));
  const form = byId('filters');
  const search = el('input', { type: 'search', autocomplete: 'off', placeholder: 'in completions and prompts' });
  form.append(field('Search', search));
  filters.success = choice([['', 'any'], ['true', 'yes'], ['false', 'no']]);
  filters.leak = choice([['', 'any'], ['true', 'leaks'], ['false', 'does not']]);
  if (allRollouts.some((rollout) => rollout.success != null)) form.append(field('Success', filters.success));
  if (allRollouts.some((rollout) => rollout.leak)) form.append(field('Leak', filters.leak));
  if (rewards.length) {
    filters.reward = choice(rewards.map((name) => [name, name]));
    filters.least = el('input', { type: 'number', step: 'any', placeholder: 'any' });
    form.append(field('Reward', filters.reward), field('At least', filters.least));
  }
  if (views.length > 1) {
    filters.view = choice([['', 'any'], ...views.map((name) => [name, name])]);
    filters.colour = choice([['', 'all, by their shares'], ...views.map((name) => [name, name])]);
    filters.side = el('input', { type: 'checkbox' });
    form.append(field('Has view', filters.view), field('Colours of view', filters.colour), field('Views side by side', filters.side));
  }
  form.addEventListener('submit', (event) => event.preventDefault());
  form.addEventListener('input', () => {
    state.search = search.value.toLowerCase();
    if (filters.side) {
      state.view = filters.colour.value;
      state.side = filters.colour.disabled = filters.side.checked;
    }
    showRollouts();
  });
}

function buildSteps() {
  const slider = byId('step'), series = byId('series'), beside = byId('beside');
  const names = [...new Set(DATA.groups.map((one) => one.series))];
  series.append(...names.map((name) => el('option', { value: name }, name)));
  series.hidden = names.length < 2;
  byId('steps').hidden = DATA.groups.length < 2;
  // The rollouts stay where they are in the window, whatever the overview above them grows by
  const show = (same) => {
    const before = byId('list').getBoundingClientRect().top;
    state.place = Number(slider.value);
    byId('step-label').textContent = group().label;
    slider.setAttribute('aria-valuetext', group().label);
    showOverview();
    showRollouts(same && group().fixed);
    if (same) scrollBy({ top: byId('list').getBoundingClientRect().top - before, behavior: 'instant' });
  };
  const choose = () => {
    state.series = series.value;
    slider.value = 0;
    slider.max = members().length - 1;
    slider.hidden = members().length < 2;
    byId('beside-label').hidden = slider.hidden || !members()[0].fixed;
    byId('beside-label').lastElementChild.textContent = `with “${members()[0].label}” beside it`;
    state.beside = beside.checked = false;
    show(false);
  };
  slider.addEventListener('input', () => show(true));
  series.addEventListener('change', choose);
  beside.addEventListener('change', () => {
    state.beside = beside.checked;
    show(true);
  });
  choose();
}

function buildSettings() {
  const parts = Object.entries(DATA.settings).map(([name, value]) => ` · ${name}: ${typeof value === 'number' ? number(value) : value}`);
  byId('settings').append(el('b', {}, DATA.run), ...parts);
}

// The token that an event is about, with what is known of its text
function tokenOf(target) {
  const token = target.closest ? target.closest('.text > .k') : null;
  return token ? { token, text: token.parentElement, known: TEXTS.get(token.parentElement) } : null;
}

function point(found) {
  showToken(found.known.rollout, found.token.index, found.known.view);
}

function choose(found) {
  const { token, text, known } = found;
  known.tokens[known.at].tabIndex = -1;
  known.tokens[known.at].removeAttribute('aria-selected');
  known.at = token.index;
  token.tabIndex = 0;
  token.setAttribute('aria-selected', 'true');
  point(found);
  const texts = [...TEXTS.keys()], place = texts.indexOf(text);
  for (const near of [texts[place - 1], texts[place + 1]]) if (near) draw(near);
}

// Token in the line above or below that is nearest
function lineOff(tokens, from, way) {
  const middle = (box) => (box.left + box.right) / 2, start = tokens[from].getClientRects()[0];
  let best = null, line = null;
  for (let i = from + way; i >= 0 && i < tokens.length; i += way) {
    const box = tokens[i].getClientRects()[0];
    if (!box || Math.abs(box.top - start.top) < 4) continue;
    if (line == null) line = box.top;
    if (Math.abs(box.top - line) > 4) break;
    const off = Math.abs(middle(box) - middle(start));
    if (best == null || off < best.off) best = { i, off };
  }
  return best ? best.i : from;
}

function onKey(event) {
  if (event.key === 'Escape') hidePanel();
  const found = tokenOf(event.target);
  if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
  const { tokens } = found.known, at = found.token.index;
  const goals = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => tokens.length - 1,
    ArrowDown: () => lineOff(tokens, at, 1), ArrowUp: () => lineOff(tokens, at, -1),
  };
  if (!goals[event.key]) return;
  event.preventDefault();
  const goal = tokens[Math.max(0, Math.min(tokens.length - 1, goals[event.key]()))];
  goal.focus();
  goal.scrollIntoView({ block: 'nearest' });
}

function listen() {
  const list = byId('list');
  list.addEventListener('pointerover', (event) => { const found = tokenOf(event.target); if (found) point(found); });
  list.addEventListener('pointerleave', () => { const found = tokenOf(document.activeElement); if (found) point(found); });
  list.addEventListener('focusin', (event) => { const found = tokenOf(event.target); if (found) choose(found); });
  document.addEventListener('keydown', onKey);
  addEventListener('beforeprint', drawAll);
}

buildSettings();
drawCharts();
buildColours();
buildFilters();
buildSteps();
listen();
document.body.dataset.ready = 'yes';
