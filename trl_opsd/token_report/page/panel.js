// Panel of one token: both sides' likeliest tokens with the probabilities of both.

function kindOf(rollout, i) {
  if (has(rollout.written, i) === 0) return 'a tool result, which nobody wrote';
  return rollout.views.some((view) => shareOf(view, i) > 0) && rollout.p[i] != null ? '' : 'not taught';
}

function listTable(title, ids, p, q, sampled) {
  const rows = ids.map((id, k) => {
    const name = el('td', {}, tokenText(DATA.strings[id] ?? ''));
    if (id === sampled) name.append(el('small', { class: 'written' }, ' written'));
    return [name, barCell(Math.exp(q[k] ?? -99), chance(q[k]), 'blue'), barCell(Math.exp(p[k] ?? -99), chance(p[k]), 'grey')];
  });
  return table([title, 'teacher', 'student'], rows, title);
}

function verdict(gap) {
  const factor = Math.exp(Math.abs(gap));
  if (factor < 1.05) return 'equally likely';
  const times = factor >= 1e6 ? 'over a million' : factor >= 10 ? Number(factor.toPrecision(2)).toLocaleString('en') : factor.toPrecision(2);
  return `${times} times ${gap > 0 ? 'likelier' : 'less likely'}`;
}

function viewPart(rollout, i, view) {
  const several = rollout.views.length > 1;
  const share = shareOf(view, i);
  const title = several ? el('h4', {}, `View ${view.name}`) : null;
  if (!share || view.q[i] == null) {
    const why = i < view.start ? 'Its hint comes later.' : 'It does not teach this token.';
    return several ? el('div', {}, title, el('p', { class: 'note' }, why)) : null;
  }
  const gap = view.q[i] - rollout.p[i];
  const facts = [
    ['teacher', `${chance(view.q[i])}`, `log q ${number(view.q[i])}`],
    ['student', `${chance(rollout.p[i])}`, `log p ${number(rollout.p[i])}`],
    ['gap', `${number(gap)} nats`, verdict(gap)],
    ['divergence', `${number(view.divergence[i])} nats`, view.loss[i] === view.divergence[i] ? '' : `loss ${number(view.loss[i])}`],
    ['entropy', `${number(view.entropy[i])} nats`, `student’s ${number(rollout.entropy[i])}`],
  ];
  if (rollout.advantage) facts.push(['advantage', number(rollout.advantage[i]), '']);
  if (several) facts.push(['share', percent(share), 'of this token’s loss']);
  const list = el('dl', { class: 'facts' }, ...facts.flatMap(([name, value, note]) => [el('dt', {}, name), el('dd', {}, value, note ? el('small', {}, ` ${note}`) : '')]));
  const part = el('div', {}, title, list);
  if (view.top && view.top.ids[i]) part.append(listTable('The teacher would write', view.top.ids[i], view.top.p[i], view.top.q[i], rollout.ids[i]));
  if (rollout.top && rollout.top.ids[i]) part.append(listTable('The student would write', rollout.top.ids[i], rollout.top.p[i], rollout.top.q[view.name][i], rollout.ids[i]));
  return part;
}

function showToken(rollout, i, view) {
  state.token = { index: rollout.index, i, view };
  const kind = kindOf(rollout, i);
  const views = rollout.views.filter((one) => !view || one.name === view);
  const close = el('button', { type: 'button', class: 'close', 'aria-label': 'Close the panel' }, '×');
  close.addEventListener('click', hidePanel);
  const place = el('small', {}, `Token ${i + 1} of ${rollout.ids.length}, id ${rollout.ids[i]}${kind ? `: ${kind}` : ''}`);
  byId('panel').replaceChildren(close, el('h3', {}, tokenText(rollout.texts[i] || DATA.strings[rollout.ids[i]] || ''), ' ', place), ...views.map((one) => viewPart(rollout, i, one)).filter(Boolean));
  byId('panel').classList.add('open');
}

function hidePanel() {
  state.token = null;
  byId('panel').classList.remove('open');
  byId('panel').replaceChildren(el('p', { class: 'note' }, 'No token is chosen.'));
}
