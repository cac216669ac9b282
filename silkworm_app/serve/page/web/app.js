// The page: a picture in, an answer in words out. Words, rules and numbers are in model.json, the net is model.onnx. All text is set as text.

import * as ort from './ort/ort.wasm.min.mjs';
import {decide, picture_stats, unpack} from './decide.js';
import {TooLarge, half_even, normalised, open_picture, square} from './picture.js';

const $ = id => document.getElementById(id);
let model, arrays, session, words, answer, ready = false, serial = 0;

// An element with a class and what is in it: texts or other elements; empty ones are left out.
function el(name, cls, ...inside) {
  const e = document.createElement(name);
  if (cls) e.className = cls;
  e.append(...inside.filter(o => o !== null && o !== ''));
  return e;
}

// The words, as `Say` in html.py puts them together.
const say = (key, v = {}) => words.texts[key].replace(/\{(\w+)\}/g, (_, k) => v[k]);
const title = c => words.titles[c];
const by_class = o => model.classes.filter(c => Object.hasOwn(o, c)).map(c => [c, o[c]]);       // objects sort names that are whole numbers
const surest_first = o => by_class(o).sort((x, y) => y[1] - x[1]);
const pct = p => `${half_even(100 * p)}%`;
const two_places = v => (v * 8 % 2 === 1 ? half_even(100 * v) / 100 : v).toFixed(2);        // 1/8, 3/8, ... lie between two: as Python rounds

function list(items, last = 'and', most = 8) {
  items = items.map(String);
  if (items.length > most) items = [...items.slice(0, most - 1), say('others', {n: items.length - most + 1})];
  return items.slice(0, -1).join(say('comma')) + (items.length > 1 ? say(last) : '') + items.slice(-1).join('');
}

const classes = (names, last) => list(names.map(title), last);

function unproven({seen, needed}) {
  const [names, n] = [0, 1].map(k => by_class(seen).map(o => o[k]));
  if (names.length > 8) return say('unproven_many', {n: names.length, seen: Math.max(...n), needed});
  const equal = n.every(k => k === n[0]), how = names.length === 1 ? 'reason_unproven' : equal ? 'unproven_each' : 'unproven_more';
  return say(how, {classes: classes(names), seen: equal ? n[0] : list(n), needed});
}

function reason({code, values}) {
  const v = {...values};
  if (code === 'unproven') return unproven(v);
  if (code === 'ambiguous') v.list = list(surest_first(v.probs).map(([c, p]) => `${title(c)} ${pct(p)}`));
  return say(`reason_${code}`, v);
}

function collect(a) {
  const items = by_class(a.unproven).filter(([c]) => c in model.more).map(([c]) => say('advice_collect_item', {label: title(c), more: model.more[c]}));
  return items.length ? say('advice_collect_list', {list: list(items)}) : '';
}

const named = a => ['one', 'several'].includes(a.kind) ? a.labels : [];

function verdict(a) {
  const told = named(a), p = text => el('p', '', text), box = el('div', `verdict ${a.kind}`, el('p', 'kicker', say(`kicker_${a.kind}`)));
  box.setAttribute('role', 'status');
  box.append(el('h2', '', told.length ? classes(told, 'or') : say(`head_${a.kind}`)));
  if (told.length) {
    if (a.excluded.length) box.append(p(say(a.excluded.length === 1 ? 'reason_excluded' : 'excluded_more', {classes: classes(a.excluded)})));
    if (a.kind === 'several' && model.silk) box.append(p(say('several_enough')));
    box.append(...a.codes.map(r => p(reason(r))));
  } else {
    box.append(el('ul', 'why', ...(a.codes.length ? a.codes.map(reason) : [say('all_possible')]).map(t => el('li', '', t))));
    if (a.advice === 'collect') box.append(p(`${say('advice_collect')} ${collect(a)}`));
  }
  if (a.advice === 'camera') box.append(p(say('advice_camera')));
  if (!told.length) box.append(p(say(model.silk ? 'isolate' : 'advice_ask')));
  const m = told.length ? a.measured : null;
  if (m && m.n) box.append(el('p', 'small', say('measured_one', {n: m.n, right: m.right, low: pct(m.low), high: pct(m.high)})));
  else if (told.length) box.append(el('p', 'small', say('measured_missing')));
  return box;
}

function why(a) {
  const risk = model.trust.risk, proof = Object.keys(a.pvalues).length > 0, cells = (tag, ...texts) => el('tr', '', ...texts.map(t => el(tag, '', t)));
  const table = el('table', '', cells('th', say('class'), say('probability'), ...(proof ? [say('fits')] : [])));
  for (const [c, p] of surest_first(a.probabilities)) {
    const bar = el('meter');
    bar.value = p;
    table.append(cells('td', title(c), el('span', '', bar, ` ${pct(p)}`), ...(proof ? [two_places(a.pvalues[c])] : [])));
  }
  return [el('p', 'small', proof ? say('why_evidence', {risk, rate: +(100 * risk).toPrecision(6)}) : say('why_probability')), table];
}

function linked(text) {
  return text.split(/(https?:\/\/[^\s)&;,<>"]+)/).map((part, i) => {
    if (i % 2 === 0) return part;
    const a = el('a', '', new URL(part).host);
    Object.assign(a, {href: part, target: '_blank', rel: 'noopener noreferrer'});
    return a;
  });
}

function care(a) {
  const found = named(a).map(c => words.care[c]).filter(Boolean);
  return found.map(d => {
    const inside = [['care_do', d.do], ['care_what', d.what]].filter(([, t]) => t).flatMap(([head, t]) =>
      [el('h3', '', say(head)), Array.isArray(t) ? el('ul', '', ...t.map(o => el('li', '', o))) : el('p', '', t)]);
    if (d.source) inside.push(el('p', 'small', `${say('care_source')}: `, ...linked(d.source)));
    return found.length > 1 ? el('details', '', el('summary', '', d.title), ...inside) : el('div', '', ...inside);
  });
}

const note = (kicker, text, cls = 'idle') => el('div', `verdict ${cls}`, el('p', 'kicker', kicker), el('p', 'why', text));

// Everything on the page in the language that is chosen.
function show() {
  document.documentElement.lang = words.lang;
  document.title = words.title;
  $('head').replaceChildren(el('h1', '', words.title), el('p', '', words.subtitle));
  for (const e of document.querySelectorAll('[data-say]')) e.textContent = say(e.dataset.say);
  $('banner').hidden = !words.banner.length;
  $('banner').replaceChildren(el('strong', '', say('read_first')), el('ul', '', ...words.banner.map(t => el('li', '', t))));
  $('offline').textContent = ready ? say('web_ready') : '';
  const box = answer === undefined ? (session ? note(say('idle_kicker'), say(model.silk ? 'idle_silkworm' : 'idle_other')) : note('', say('web_wait', {mb: model.mb})))
    : answer === null ? note('', say('web_working')) : answer.error ? note(say('error_kicker'), answer.error(), 'bad') : verdict(answer);
  $('verdict').replaceChildren(box);
  const told = answer && !answer.error;
  $('why').hidden = !told;
  $('why').lastElementChild.replaceChildren(...(told ? why(answer) : []));
  $('care').replaceChildren(...(told ? care(answer) : []));
}

// All that is computed about a picture file.
export async function ask(file) {
  const [rows, size, close] = await open_picture(file), x = normalised(square(rows, size, model.preprocess), model.preprocess), s = model.preprocess.size;
  close();
  const out = await session.run({image: new ort.Tensor('float32', x, [1, 3, s, s])});
  return decide(model.trust, arrays, out.logits.data, out.features.data, picture_stats(x, s));
}

async function take(e) {
  const file = e.target.files[0];
  e.target.value = '';                               // the same file may be taken again
  if (!file) return;
  const mine = ++serial;
  URL.revokeObjectURL($('picture').src);
  Object.assign($('picture'), {src: URL.createObjectURL(file), hidden: false, alt: file.name});
  answer = null;
  show();
  let found;
  try { found = await ask(file); }
  catch (err) { console.warn(err); found = {error: () => say(err instanceof TooLarge ? 'web_too_large' : 'web_unreadable')}; }
  if (mine !== serial) return;                       // another picture was taken meanwhile
  answer = found;
  $('picture').hidden = 'error' in found;
  show();
}

async function keep() {
  if (!('serviceWorker' in navigator)) return;
  await navigator.serviceWorker.register('sw.js');
  await navigator.serviceWorker.ready;
  ready = true;
  show();
}

async function begin() {
  model = await (await fetch('model.json')).json();
  arrays = unpack(model.trust.arrays);
  const codes = Object.keys(model.words), choose = $('language');
  const wanted = [new URLSearchParams(location.search).get('lang'), ...navigator.languages].map(l => (l || '').split('-')[0].toLowerCase());
  const set = lang => { words = {lang, ...model.words[lang]}; show(); };
  choose.replaceChildren(...codes.map(l => Object.assign(el('option', '', model.words[l].texts.language), {value: l})));
  choose.value = wanted.find(l => codes.includes(l)) || codes[0];
  choose.addEventListener('change', () => set(choose.value));
  set(choose.value);
  for (const id of ['camera', 'choose']) $(id).addEventListener('change', take);
  ort.env.wasm.wasmPaths = new URL('ort/', location.href).href;
  ort.env.wasm.numThreads = 1;
  try { session = await ort.InferenceSession.create(await (await fetch('model.onnx')).arrayBuffer(), {executionProviders: ['wasm']}); }
  catch (err) { console.error(err); answer = {error: () => say('web_failed')}; return show(); }
  for (const id of ['camera', 'choose']) $(id).disabled = false;
  show();
  await keep().catch(err => console.warn(err));      // over plain http there is none: the page works with its server alone
}

begin().catch(err => {                               // the words are in model.json: without it there is this sentence alone
  console.error(err);
  $('ask').remove();
  $('verdict').textContent = 'This page could not be loaded. Open it again with a network.';
});
