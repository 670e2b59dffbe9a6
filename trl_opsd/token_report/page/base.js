// Data, elements and numbers. Text goes into the page as text nodes alone.

const DATA = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);
const state = { series: DATA.groups[0].series, place: 0, measure: 'gap', view: '', side: false, beside: false, token: null };

function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(key, '');
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

// Groups of the chosen series, and the chosen one; `fixed` series have the same prompts in all of their groups
const members = () => DATA.groups.filter((one) => one.series === state.series);
const group = () => members()[state.place];
const sum = (values) => values.reduce((a, b) => a + b, 0);
const plural = (count, word) => `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;

function number(value, digits = 3) {
  if (value == null) return '–';
  if (value === 0) return '0';
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(value).toLocaleString('en') : size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return text.replace('-', '−');
}

function percent(share) {
  if (share == null) return '–';
  const value = 100 * share;
  if (value === 0 || value >= 99.95) return `${Math.round(value)}\u00a0%`;
  if (value < 0.001) return '<0.001\u00a0%';
  return `${value >= 9.95 ? value.toFixed(1) : value >= 0.995 ? value.toFixed(2) : Number(value.toPrecision(2))}\u00a0%`;
}

const chance = (log) => (log == null ? '–' : percent(Math.exp(log)));

// Characters that would be invisible, or would turn the direction of what follows, are named instead
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
const SPECIAL = new RegExp(`(${INVISIBLE.source}|[\\n\\t])`);
const CONTROL = /^<[^<>\s]+>$/;
const codeOf = (char) => 'U+' + char.codePointAt(0).toString(16).toUpperCase().padStart(4, '0');

// The text of a token as nodes: line ends and tabs have a sign that is no text
function shown(text, breaks) {
  return text.split(SPECIAL).filter(Boolean).map((part) => {
    if (part === '\n') return el('span', { class: 'sign nl' }, breaks ? '\n' : '');
    if (part === '\t') return el('span', { class: 'sign tab' }, '\t');
    if (INVISIBLE.test(part)) return el('span', { class: 'sign code', 'data-code': codeOf(part) });
    return part;
  });
}

// A token by itself: spaces at its ends are visible
function tokenText(text) {
  const token = el('bdi', { class: CONTROL.test(text) ? 'token control' : 'token' });
  if (text === '') token.append(el('i', {}, 'part of a character'));
  const [, before, middle, after] = /^( *)([^]*?)( *)$/.exec(text);
  const space = (spaces) => spaces && el('span', { class: 'space' }, '␣'.repeat(spaces.length));
  token.append(...[space(before), ...shown(middle, false), space(after)].filter(Boolean));
  return token;
}

function table(heads, rows, label) {
  const head = el('tr', {}, ...heads.map((text) => el('th', { scope: 'col' }, text)));
  const body = rows.map((cells) => el('tr', {}, ...cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : el('td', {}, cell)))));
  return el('table', { 'aria-label': label }, el('thead', {}, head), el('tbody', {}, ...body));
}

// A cell with a bar beside its text, or below it where there is little room
function barCell(share, text, kind = '') {
  const bar = el('span', { class: `bar ${kind}` });
  bar.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  return el('td', { class: 'with-bar' }, el('div', {}, el('span', { class: 'track' }, bar), el('span', {}, text)));
}

function card(title, note, ...content) {
  return el('section', { class: 'card' }, el('h3', {}, title), note ? el('p', { class: 'note' }, note) : null, ...content);
}
