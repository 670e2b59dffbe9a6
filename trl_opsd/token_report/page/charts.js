// Curves of the run as small SVG charts.

const WIDTH = 300, HEIGHT = 120, LEFT = 38, RIGHT = 10, TOP = 10, BOTTOM = 22;

function svg(name, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function ticks(low, high) {
  const raw = (high - low) / 2, size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= raw * 0.7);
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) found.push(Number(tick.toPrecision(6)));
  return found;
}

function drawChart(chart, steps) {
  const all = chart.series.flatMap((series) => series.points);
  const values = all.map(([, value]) => value);
  let low = Math.min(0, ...values), high = Math.max(...values);
  if (high === low) high = low + 1;
  const [begin, end] = steps;
  const x = (step) => LEFT + (end === begin ? 0.5 : (step - begin) / (end - begin)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const last = chart.series.map((series) => `${series.label} ${number(series.points.at(-1)[1])}`).join(', ');
  const image = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${chart.title} by step; last: ${last}` });
  for (const tick of ticks(low, high)) {
    image.append(svg('line', { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: 'grid' }));
    image.append(svg('text', { x: LEFT - 6, y: y(tick) + 3.5, class: 'tick end' }, number(tick)));
  }
  for (const step of new Set(steps)) {
    const place = begin === end ? '' : step === begin ? ' begin' : ' end';
    image.append(svg('text', { x: x(step), y: HEIGHT - 6, class: `tick${place}` }, String(step)));
  }
  for (const warning of DATA.warnings) {
    if (warning.step < begin || warning.step > end) continue;
    const mark = svg('path', { d: `M${x(warning.step)} ${TOP}V${HEIGHT - BOTTOM}`, class: 'warned' }, svg('title', {}, `Step ${warning.step}: ${warning.warning}`));
    image.append(mark);
  }
  if (DATA.groups.length > 1) image.append(svg('line', { y1: TOP, y2: HEIGHT - BOTTOM, class: 'here', 'data-x': '' }));
  chart.series.forEach((series, i) => {
    const points = series.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
    image.append(svg('polyline', { points: points.join(' '), class: `line s${i % 4}` }));
    const dots = series.points.length > 12 ? series.points.slice(-1) : series.points;
    for (const [step, value] of dots) image.append(svg('circle', { cx: x(step), cy: y(value), r: 2.2, class: `dot s${i % 4}` }));
  });
  image.mark = (step) => {
    const line = image.querySelector('.here');
    if (!line) return;
    line.setAttribute('visibility', step == null ? 'hidden' : 'visible');
    const place = x(Math.max(begin, Math.min(end, step)));
    line.setAttribute('x1', place);
    line.setAttribute('x2', place);
  };
  const key = chart.series.map((series, i) => el('li', { class: `s${i % 4}` }, series.label, ' ', el('b', {}, number(series.points.at(-1)[1]))));
  return el('figure', { class: 'chart' }, el('figcaption', {}, el('b', {}, chart.title), chart.unit ? `, ${chart.unit}` : ''), image, el('ul', { class: 'key' }, ...key));
}

function drawCharts() {
  const all = DATA.charts.flatMap((chart) => chart.series.flatMap((series) => series.points.map(([step]) => step)));
  if (!all.length) return;
  const steps = [Math.min(...all), Math.max(...all)];
  byId('charts').before(el('h2', {}, 'The run'));
  byId('charts').append(...DATA.charts.map((chart) => drawChart(chart, steps)));
  if (DATA.warnings.length) {
    const items = DATA.warnings.map((warning) => el('li', {}, el('b', {}, `Step ${warning.step}`), ` ${warning.warning}`));
    byId('warnings').append(card('Warnings', 'Dashed lines in the charts.', el('ul', { class: 'warnings' }, ...items)));
  }
}
const markStep = (step) => byId('charts').querySelectorAll('svg').forEach((image) => image.mark(step));
