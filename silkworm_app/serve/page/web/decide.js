// What may be said about a picture, by the rules of serve/trust.py and serve/unlike.py: the classes that the evidence leaves, or why none.

const sum = v => v.reduce((a, b) => a + b, 0), mean = v => sum(v) / v.length;
const std = v => { const m = mean(v); return Math.sqrt(mean(v.map(x => (x - m) ** 2))); };

export function softmax(logits, temperature = 1) {
  const z = Array.from(logits, v => v / temperature), top = Math.max(...z), e = z.map(v => Math.exp(v - top)), all = sum(e);
  return e.map(v => v / all);
}

// Arrays of `pack_arrays`: name -> {shape, data: base64 of float32}.
export function unpack(arrays) {
  const out = {};
  for (const [name, {shape, data}] of Object.entries(arrays || {})) {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    out[name] = {shape, data: Array.from(new Float32Array(bytes.buffer))};
  }
  return out;
}

const row = ({shape: [, k], data}, i) => data.slice(i * k, (i + 1) * k);
const dot = (a, b) => { let s = 0; for (let i = 0; i < a.length; i++) s += a[i] * b[i]; return s; };
const quadratic = (v, m) => sum(v.map((x, i) => x * dot(row(m, i), v)));

// How far features are from those of the training pictures.
export function distance(features, t) {
  const size = Math.max(Math.sqrt(dot(features, features)), 1e-12), f = features.map((v, i) => v / size - t.mean.data[i]);
  const z = Array.from({length: t.axes.shape[0]}, (_, i) => dot(row(t.axes, i), f));
  const inside = Math.min(...Array.from({length: t.means.shape[0]}, (_, c) => {
    const m = row(t.means, c);
    return quadratic(z.map((v, i) => v - m[i]), t.precision);
  }));
  const outside = Math.max(dot(f, f) - dot(z, z), 0) / t.rest_var.data[0];
  return Math.sqrt((Math.max(inside, 0) + outside) / Math.max(1, f.length));
}

// How far colours and textures are from those of the training pictures.
export function look_distance(look, t) {
  const z = look.map((v, i) => (v - t.look_mean.data[i]) / t.look_scale.data[i]);
  return Math.sqrt(Math.max(quadratic(z, t.look_precision), 0) / z.length);
}

// Contrast, sharpness, colours and textures of the net's input, float32 [3, size, size].
export function picture_stats(x, s) {
  const n = s * s, plane = c => Array.from(x.subarray(c * n, (c + 1) * n)), [r, g, b] = [0, 1, 2].map(plane);
  const gray = r.map((v, i) => (v + g[i] + b[i]) / 3), lap = [];
  if (s < 3) return [std(gray), Infinity];
  for (let y = 1; y < s - 1; y++) for (let i = y * s + 1; i < (y + 1) * s - 1; i++)
    lap.push(gray[i - s] + gray[i + s] + gray[i - 1] + gray[i + 1] - 4 * gray[i]);
  const rgb = [r, g, b], means = rgb.map(mean), stds = rgb.map(std), out = [...means, ...stds.map(v => Math.log(v + 1e-3))];
  const flat = rgb.map((p, c) => p.map(v => (v - means[c]) / (stds[c] + 1e-3)));
  for (const [i, j] of [[0, 1], [0, 2], [1, 2]]) out.push(dot(flat[i], flat[j]) / n);
  let planes = [gray, r.map((v, i) => v - g[i]), b.map((v, i) => v - (r[i] + g[i]) / 2)];
  for (let scale = 0, w = s; scale < 4 && w >= 4; scale++) {
    const energy = planes.map(p => gradients(p, w)), rms = energy.map(e => Math.sqrt(mean(e)) + 1e-3);
    out.push(...rms.map(Math.log), ...energy.map((e, i) => Math.log((mean(e.map(Math.sqrt)) + 1e-3) / rms[i])));
    planes = planes.map(p => halved(p, w));
    w >>= 1;
  }
  return [std(gray), std(lap), ...out];
}

function gradients(p, w) {
  const out = [];
  for (let y = 1; y < w; y++) for (let i = y * w + 1; i < (y + 1) * w; i++) out.push((p[i] - p[i - 1]) ** 2 + (p[i] - p[i - w]) ** 2);
  return out;
}

function halved(p, w) {
  const half = w >> 1, out = new Array(half * half);
  for (let y = 0; y < half; y++) for (let x = 0; x < half; x++) {
    const i = 2 * y * w + 2 * x;
    out[y * half + x] = (p[i] + p[i + w] + p[i + 1] + p[i + w + 1]) / 4;
  }
  return out;
}

// How usual a score is among photographs of a class; equal scores count for the class.
function p_value(p, scores) {
  const s = Math.round((1 - p) * 1e6) / 1e6;
  return (1 + scores.filter(v => v >= s).length) / (scores.length + 1);
}

const by_size = p => p.map((_, i) => i).sort((i, j) => p[j] - p[i] || i - j);

const SURE = 2 / 3;                                   // smallest probability of a class that is answered alone

// The fewest classes that hold two thirds of the probability, and those that are at least half as probable as the last of these.
function most_probable(p) {
  let total = 0, last = 0;
  for (const i of by_size(p)) { last = p[i]; total += last; if (total >= SURE - 1e-9) break; }
  return p.map(v => v >= last / 2);
}

// The classes that stay possible, and those of them that are named.
function class_sets(p, pvalues, proven, risk) {
  const keep = pvalues.map((v, i) => v > risk || !proven[i]), named = keep.map((k, i) => k && proven[i]), count = v => v.filter(Boolean).length;
  if (count(named) < 2) most_probable(p).forEach((likely, i) => { named[i] ||= likely; });
  const hardly = keep.map((k, i) => k && !proven[i]);
  if (count(named) === 1 && named.some((n, i) => n && hardly[i])) hardly.forEach((h, i) => { named[i] ||= h; });
  return [keep.map((k, i) => k || named[i]), named];
}

const reason = (code, values = {}) => ({code, values});

function unlike(t, stats, look, far, prob) {
  const out = [], [contrast, sharpness] = stats, set = v => v !== null && v !== undefined;
  if (set(t.min_contrast) && contrast < t.min_contrast) out.push(reason('blank'));
  else if (set(t.min_sharpness) && sharpness < t.min_sharpness) out.push(reason('blurred'));
  else if (set(t.max_grain) && sharpness > t.max_grain * contrast) out.push(reason('noise'));
  if (!Number.isFinite(prob)) out.push(reason('no_number'));
  if (look !== null && !(look <= t.look_limit) && !out.length) out.push(reason('look'));
  if (far !== null && !(far <= t.distance_limit)) out.push(reason('far'));
  return out;
}

function by_sets(t, p, a) {
  const names = t.classes, scores = names.map(c => t.scores[c]), needed = Math.ceil(1 / t.risk - 1e-9) - 1, m = t.measured || {};
  const proven = scores.map(s => s.length >= needed), pvalues = p.map((v, i) => p_value(v, scores[i]));
  const [keep, named] = class_sets(p, pvalues, proven, t.risk), order = by_size(p), of = list => Object.fromEntries(list), all = keep.every(Boolean);
  const labels = order.filter(i => named[i]).map(i => names[i]), hardly = names.map((_, i) => i).filter(i => !proven[i]);
  const unproven = of(hardly.map(i => [names[i], [scores[i].length, needed]])), apart = hardly.filter(i => all || !named[i]);
  const codes = apart.length ? [reason('unproven', {seen: of(apart.map(i => [names[i], scores[i].length])), needed})] : [];
  a = {...a, unproven, codes, pvalues: of(names.map((c, i) => [c, pvalues[i]]))};
  if (all) {
    if (a.probability < SURE) codes.unshift(reason('ambiguous', {probs: of(labels.slice(0, 3).map(c => [c, p[names.indexOf(c)]]))}));
    const vague = (m.nothing || 0) > .5 * (m.photographs || 0);
    return {...a, kind: 'nothing', advice: names.length - hardly.length < 2 || vague ? 'collect' : 'camera'};
  }
  a = {...a, labels, excluded: order.filter(i => !keep[i]).map(i => names[i]), advice: hardly.length ? 'collect' : null};
  if (labels.length !== 1) return {...a, kind: 'several', advice: a.advice || 'camera', measured: m.several || null};
  const label = labels[0];
  return {...a, kind: 'one', label, probability: p[names.indexOf(label)], measured: (m.one || {})[label] || null};
}

// The answer, with the fields of `as_dict` in serve/page/answers.py; `arrays` from `unpack`.
export function decide(t, arrays, logits, features, stats) {
  const p = softmax(logits, t.temperature), top = by_size(p)[0], looks = t.look_limit !== null && stats.length === 2 + arrays.look_mean.data.length;
  const far = t.distance_limit === null ? null : distance(Array.from(features), arrays);
  const look = looks ? look_distance(stats.slice(2), arrays) : null;
  const a = {kind: 'nothing', label: null, labels: [], excluded: [], unproven: {}, pvalues: {}, codes: [], advice: null, measured: null,
             top: t.classes[top], probability: p[top], probabilities: Object.fromEntries(t.classes.map((c, i) => [c, p[i]]))};
  const why = unlike(t, stats, look, far, p[top]);
  if (why.length) return {...a, kind: 'unlike', codes: why, advice: 'camera'};
  if (t.scores === null) return {...a, codes: [reason('note', {text: t.note})], advice: 'collect'};
  return by_sets(t, p, a);
}
