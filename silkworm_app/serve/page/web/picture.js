// From a picture file to the numbers that the net sees, as data/imaging.py makes them: upright, on white, cut and resized with
// Pillow's filters in whole numbers of eight bits, normalised in 32 bits.

const MAX_PIXELS = 80e6, MAX_SIDE = 65535, STRIP = 4e6;          // a wider canvas stays empty; pixels of one strip of a large picture
const f32 = Math.fround;

// Resampling kernels of Pillow: the half width, and the weight at a distance.
const sinc = x => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
const KERNELS = {
  bilinear: [1, x => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, x => (x = Math.abs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0],
  lanczos: [3, x => Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0],
};

// For each of n places in [from, to) of a line of `length` pixels: the first pixel that counts, and the weights as whole numbers of 2^-22.
export function weights(length, from, to, n, kernel) {
  const scale = f32(to - from) / n;                     // Pillow holds the ends in 32 bits
  if (kernel === 'nearest') {
    let at = from + scale / 2;
    return Array.from({length: n}, () => { const first = Math.floor(at); at += scale; return [first, [1 << 22]]; });
  }
  const [half, weight] = KERNELS[kernel], wide = Math.max(scale, 1), support = half * wide;
  return Array.from({length: n}, (_, i) => {
    const centre = from + (i + .5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + .5)), last = Math.min(length, Math.trunc(centre + support + .5));
    const w = Array.from({length: last - first}, (_, j) => weight((first + j - centre + .5) / wide));
    const sum = w.reduce((a, b) => a + b, 0);
    return [first, w.map(v => { v = v / sum * 2 ** 22; return Math.trunc(v < 0 ? v - .5 : v + .5); })];
  });
}

const byte = v => (v = Math.floor((v + 2 ** 21) / 2 ** 22)) < 0 ? 0 : v > 255 ? 255 : v;

// The part [x0, x1) x [y0, y1) of a picture as width x height pixels of RGB; rows(y, n) gives n rows of RGBA from y on.
export function resize(rows, [w, h], [x0, y0, x1, y1], [width, height], kernel) {
  const same = x0 === 0 && x1 === width && w === width, upright = y0 === 0 && y1 === height && h === height;
  const across = same ? null : weights(w, x0, x1, width, kernel), down = upright ? null : weights(h, y0, y1, height, kernel);
  const top = down ? down[0][0] : 0, bottom = down ? down[height - 1][0] + down[height - 1][1].length : h;
  const lines = new Uint8Array((bottom - top) * width * 3), strip = Math.max(1, Math.floor(STRIP / w));
  for (let y = top; y < bottom; y += strip) {
    const n = Math.min(strip, bottom - y), data = rows(y, n);
    for (let r = 0, o = (y - top) * width * 3; r < n; r++) for (let x = 0; x < width; x++) {
      const [first, k] = across ? across[x] : [x, null];
      let p = (r * w + first) * 4;
      if (!k) { lines[o++] = data[p]; lines[o++] = data[p + 1]; lines[o++] = data[p + 2]; continue; }
      let a = 0, b = 0, c = 0;
      for (let i = 0; i < k.length; i++, p += 4) { a += data[p] * k[i]; b += data[p + 1] * k[i]; c += data[p + 2] * k[i]; }
      lines[o++] = byte(a); lines[o++] = byte(b); lines[o++] = byte(c);
    }
  }
  if (!down) return lines;
  const line = width * 3, out = new Uint8Array(height * line);
  for (let y = 0, o = 0; y < height; y++) for (let i = 0, [first, k] = down[y]; i < line; i++) {
    let v = 0;
    for (let j = 0, p = (first - top) * line + i; j < k.length; j++, p += line) v += lines[p] * k[j];
    out[o++] = byte(v);
  }
  return out;
}

export const half_even = v => { const r = Math.round(v); return r - v === .5 && r % 2 ? r - 1 : r; };     // as Python rounds

// The square that the net sees, RGB in bytes, by the settings of a `Preprocess`.
export function square(rows, [w, h], pre) {
  const s = pre.size, full = [0, 0, w, h];
  if (pre.resize === 'squish' || (w === h && pre.crop_pct === 1)) return resize(rows, [w, h], full, [s, s], pre.interpolation);
  if (pre.resize === 'crop') {
    const side = Math.min(w, h) * pre.crop_pct, x = f32((w - side) / 2), y = f32((h - side) / 2);
    return resize(rows, [w, h], [x, y, f32((w - side) / 2 + side), f32((h - side) / 2 + side)], [s, s], pre.interpolation);
  }
  const scale = s / Math.max(w, h), nw = Math.max(1, half_even(w * scale)), nh = Math.max(1, half_even(h * scale));
  const small = resize(rows, [w, h], full, [nw, nh], pre.interpolation), out = new Uint8Array(s * s * 3);
  const left = Math.floor((s - nw) / 2), top = Math.floor((s - nh) / 2), fill = pre.mean.map(m => half_even(255 * m));
  for (let i = 0; i < out.length; i++) out[i] = fill[i % 3];
  for (let y = 0; y < nh; y++) out.set(small.subarray(y * nw * 3, (y + 1) * nw * 3), ((y + top) * s + left) * 3);
  return out;
}

// RGB in bytes as the net's input: float32 [3, size, size].
export function normalised(rgb, pre) {
  const n = rgb.length / 3, out = new Float32Array(rgb.length);
  for (let c = 0; c < 3; c++) {
    const mean = f32(pre.mean[c]), std = f32(pre.std[c]);
    for (let i = 0; i < n; i++) out[c * n + i] = f32(f32(f32(rgb[3 * i + c] / 255) - mean) / std);
  }
  return out;
}

export class TooLarge extends Error {}

function small_enough(w, h) {
  if (w * h > MAX_PIXELS || Math.max(w, h) > MAX_SIDE) throw new TooLarge(`${w} x ${h} pixels`);
}

// How a picture of w x h pixels goes on a canvas to stand upright, by its orientation in EXIF.
const TURNS = [null, () => [1, 0, 0, 1, 0, 0], w => [-1, 0, 0, 1, w, 0], (w, h) => [-1, 0, 0, -1, w, h], (w, h) => [1, 0, 0, -1, 0, h],
               () => [0, 1, 1, 0, 0, 0], (w, h) => [0, 1, -1, 0, h, 0], (w, h) => [0, -1, -1, 0, h, w], w => [0, -1, 1, 0, 0, w]];

function orientation(exif) {
  try {
    const from = exif.getUint32(0) === 0x45786966 ? 6 : 0, little = exif.getUint16(from) === 0x4949, list = from + exif.getUint32(from + 4, little);
    for (let n = exif.getUint16(list, little), at = list + 2; n--; at += 12) {
      const turn = exif.getUint16(at, little) === 0x0112 && exif.getUint16(at + 8, little);
      if (TURNS[turn]) return turn;
    }
  } catch { /* cut short: as it is stored */ }
  return 1;
}

// What a file says ahead of decoding: whether it holds a colour profile, however far behind (without one, browsers are told to leave
// its colours alone), and the orientation of WebP, which browsers leave alone. Too many pixels in JPEG or PNG are refused here.
async function read_about(file) {
  const read = async (at, n) => new DataView(await file.slice(at, at + n).arrayBuffer()), [JPEG, PNG, WEBP] = [0xffd8, 0x8950, 0x5249];
  const text = view => new TextDecoder('latin1').decode(view), kind = (await read(0, 2)).getUint16(0);
  let profile = text(await read(0, 1 << 18)).includes('colr'), turn = 1, next;      // AVIF and HEIC
  for (let at = {[JPEG]: 2, [PNG]: 8, [WEBP]: 12}[kind]; at + 16 <= file.size; at = next) {
    const v = await read(at, 16), mark = v.getUint16(0), name = text(v).substr(kind === WEBP ? 0 : 4, 4);
    if (kind === JPEG ? mark <= 0xff00 || mark === 0xffda : name === 'IDAT') break;
    if (kind === JPEG && mark >= 0xffc0 && mark <= 0xffc2) small_enough(v.getUint16(7), v.getUint16(5));
    if (kind === PNG && name === 'IHDR') small_enough(v.getUint32(8), v.getUint32(12));
    const n = v.getUint32(4, true);
    if (kind === WEBP && name === 'EXIF') turn = orientation(await read(at + 8, n));
    profile ||= ['ICC_', 'iCCP', 'ICCP'].includes(name);
    next = at + (kind === JPEG ? 2 + v.getUint16(2) : kind === PNG ? 12 + v.getUint32(0) : 8 + n + n % 2);
  }
  return [profile, turn];
}

// A file (Blob) as [rows, [width, height]] for `square`: decoded by the browser, upright, on white.
export async function open_picture(file) {
  const [profile, turn] = await read_about(file);
  const how = {imageOrientation: turn === 1 ? 'from-image' : 'none', premultiplyAlpha: 'none', colorSpaceConversion: profile ? 'default' : 'none'};
  const image = await createImageBitmap(file, how), [w, h] = turn > 4 ? [image.height, image.width] : [image.width, image.height];
  small_enough(w, h);
  const rows = (y, n) => {
    const canvas = new OffscreenCanvas(w, n), pen = canvas.getContext('2d', {willReadFrequently: true, colorSpace: 'srgb'});
    pen.imageSmoothingEnabled = false;
    pen.translate(0, -y);
    pen.transform(...TURNS[turn](image.width, image.height));
    pen.drawImage(image, 0, 0);
    const data = pen.getImageData(0, 0, w, n).data;
    for (let i = 0; i < data.length; i += 4) {
      const a = data[i + 3];
      if (a < 255) for (let c = 0; c < 3; c++) data[i + c] = Math.round((data[i + c] * a + 255 * (255 - a)) / 255);
    }
    return data;
  };
  return [rows, [w, h], () => image.close()];
}
