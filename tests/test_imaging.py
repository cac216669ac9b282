"Pictures of every kind and every kind of broken picture, through files as a camera, a phone or a web page would deliver them."
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from silkworm_app.data.imaging import IMAGE_SUFFIXES, ImageError, Preprocess, check_image, open_image, picture_header

rng = np.random.default_rng(0)
PHOTO = Image.fromarray(np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((10, 10, 1))).astype(np.uint8))


def save(im, **kw):
    f = io.BytesIO()
    im.save(f, **kw)
    return f.getvalue()


def corner(src): return np.asarray(open_image(src))[0, 0].tolist()


@pytest.mark.parametrize('fmt,kw', [('PNG', {}), ('BMP', {}), ('TIFF', {}), ('TIFF', dict(compression='tiff_lzw')), ('WEBP', dict(lossless=True)), ('PPM', {})])
def test_lossless_formats_keep_every_pixel(fmt, kw):
    assert np.array_equal(np.asarray(open_image(save(PHOTO, format=fmt, **kw))), np.asarray(PHOTO))


@pytest.mark.parametrize('kw', [dict(quality=95), dict(quality=95, progressive=True), dict(quality=95, subsampling=2)])
def test_jpeg_is_close(kw):
    assert np.abs(np.asarray(open_image(save(PHOTO, format='JPEG', **kw))).astype(int) - np.asarray(PHOTO)).mean() < 12


@pytest.mark.parametrize('im,kw,want', [
    (Image.new('L', (4, 4), 99), dict(format='PNG'), [99] * 3),
    (Image.new('L', (4, 4), 99), dict(format='JPEG'), [99] * 3),
    (Image.new('1', (4, 4), 0), dict(format='PNG'), [0] * 3),
    (Image.new('RGBA', (4, 4), (10, 20, 30, 255)), dict(format='PNG'), [10, 20, 30]),
    (Image.new('RGBA', (4, 4), (10, 20, 30, 0)), dict(format='PNG'), [255] * 3),
    (Image.new('RGBA', (4, 4), (10, 20, 30, 0)), dict(format='WEBP', lossless=True), [255] * 3),
    (Image.new('LA', (4, 4), (0, 0)), dict(format='PNG'), [255] * 3),
    (Image.new('CMYK', (4, 4), (255, 0, 0, 0)), dict(format='TIFF'), [0, 255, 255]),
    (Image.new('CMYK', (4, 4), (0, 0, 0, 0)), dict(format='JPEG', quality=100), [255] * 3),
    (Image.new('CMYK', (4, 4), (0, 0, 0, 255)), dict(format='JPEG', quality=100), [0] * 3),
    (Image.new('YCbCr', (4, 4), (128, 128, 128)), dict(format='JPEG', quality=100), [128] * 3),
    (Image.fromarray(np.full((4, 4), 257 * 200, np.uint16)), dict(format='PNG'), [200] * 3),
    (Image.fromarray(np.full((4, 4), 257 * 200, np.uint16)), dict(format='TIFF'), [200] * 3),
    (Image.fromarray(np.full((4, 4), 60000, np.int32)), dict(format='TIFF'), [233] * 3),
])
def test_modes(im, kw, want): assert corner(save(im, **kw)) == pytest.approx(want, abs=1)


def test_sixteen_bit_keeps_order_and_range():
    "All 65,536 grey values: monotone, ends exact, within half a step of v / 257."
    a = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    got = np.asarray(open_image(save(Image.fromarray(a), format='PNG')))[..., 0].astype(float)
    assert np.abs(got - a / 257).max() <= .5 + 1e-9 and got[0, 0] == 0 and got[-1, -1] == 255


def test_palettes():
    im = Image.new('P', (4, 4), 2)
    im.putpalette([0, 0, 0, 50, 60, 70, 200, 10, 5])
    assert corner(save(im, format='PNG')) == [200, 10, 5]
    assert corner(save(im, format='GIF')) == [200, 10, 5]
    assert corner(save(im, format='PNG', transparency=2)) == [255] * 3
    assert corner(save(im, format='PNG', transparency=bytes([255, 255, 51]))) == pytest.approx([244, 206, 205], abs=1)
    assert corner(save(Image.new('RGB', (4, 4), (9, 8, 7)), format='PNG', transparency=(9, 8, 7))) == [255] * 3


@pytest.mark.parametrize('fmt', ['GIF', 'PNG', 'WEBP', 'TIFF'])
def test_first_frame_of_animations(fmt):
    kw = dict(lossless=True) if fmt == 'WEBP' else {}
    data = save(Image.new('RGB', (8, 8), (250, 0, 0)), format=fmt, save_all=True, append_images=[Image.new('RGB', (8, 8), (0, 0, 250))], **kw)
    assert corner(data) == [250, 0, 0]


@pytest.mark.parametrize('code', range(1, 9))
def test_exif_orientation_in_jpeg(code):
    "The picture that a phone meant: a bright top-left quarter, whichever way the sensor lay."
    up = np.zeros((32, 48, 3), np.uint8)
    up[:16, :24] = 255
    T = Image.Transpose
    undo = [None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_90, T.TRANSVERSE, T.ROTATE_270][code - 1]
    im = Image.fromarray(up) if undo is None else Image.fromarray(up).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = code
    data = save(im, format='JPEG', quality=95, exif=exif)
    got = np.asarray(open_image(data))
    assert got.shape == up.shape and np.abs(got.astype(int) - up).mean() < 3
    assert np.abs(np.asarray(open_image(open_image(data))).astype(int) - up).mean() < 3       # not turned twice


def test_same_picture_from_every_source(tmp_path):
    path = tmp_path / 'père et fils 蚕 .png'
    PHOTO.save(path)
    want = np.asarray(PHOTO)
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()), io.BytesIO(path.read_bytes()), Image.open(path), PHOTO, want, want.astype(np.int64),
               want.astype(np.uint16) * 257, want / 255., np.dstack([want, np.full(want.shape[:2], 255, np.uint8)])]
    with open(path, 'rb') as f:
        for s in [*sources, f]: assert np.array_equal(np.asarray(open_image(s)), want), type(s)
    copy = open_image(PHOTO)
    copy.putpixel((0, 0), (1, 2, 3))
    assert PHOTO.getpixel((0, 0)) != (1, 2, 3)


JPEG = save(PHOTO, format='JPEG', quality=90)
BAD = {'zero.jpg': (b'', 'empty'), 'half.jpg': (JPEG[:len(JPEG) // 2], 'cut short'), 'half.png': (save(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), format='PNG')[:4000], 'cut short'),
       'head.jpg': (JPEG[:20], 'damaged JPEG picture, or one cut short'), 'part.webp': (save(PHOTO, format='WEBP')[:400], 'damaged WebP'), 'head.png': (b'\x89PNG\r\n\x1a\n', 'damaged PNG'), 'text.jpg': (b'hello', 'not a picture'), 'zeros.jpg': (bytes(5000), 'not a picture'), 'noise.png': (rng.bytes(5000), 'not a picture'),
       'plan.svg': (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', 'SVG'), 'page.jpg': (b'\n <html><body>Not found', 'web page'), 'doc.jpg': (b'%PDF-1.7 ...', 'PDF'),
       'iphone.heic': (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'HEIC'), 'script.eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage', 'not a picture'), 'prog.jpg': (b'\x7fELF' + bytes(99), 'not a picture')}


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('read', [open_image, check_image])
def test_bad_files_are_named_in_one_sentence(tmp_path, name, read):
    (tmp_path / name).write_bytes(BAD[name][0])
    with pytest.raises(ImageError) as e: read(tmp_path / name)
    assert name in str(e.value) and BAD[name][1] in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 300
    with pytest.raises(ImageError): read(BAD[name][0])


def test_bytes_flipped_at_random_never_crash():
    "2,000 damaged files give a picture or an `ImageError`, nothing else."
    r, sources = np.random.default_rng(1), [JPEG, save(PHOTO, format='PNG'), save(PHOTO, format='GIF'), save(PHOTO, format='WEBP'), save(PHOTO, format='TIFF'), save(PHOTO, format='BMP')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(2000):
            data = bytearray(sources[i % len(sources)])
            for j in r.integers(0, min(len(data), 2000), r.integers(1, 12)): data[j] = r.integers(256)
            if r.random() < .3: data = data[:r.integers(1, len(data))]
            try: assert open_image(bytes(data)).mode == 'RGB'
            except ImageError as e: assert '\n' not in str(e)


def bomb(side):
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


@pytest.mark.parametrize('side', [9_000, 12_000, 60_000, 2**31 - 1])
def test_bombs_are_refused_unopened(side):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ImageError, match='pixels|not a picture'): open_image(bomb(side))


def test_odd_paths(tmp_path):
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'dangling.jpg').symlink_to(tmp_path / 'gone.jpg')
    for src, word in [(tmp_path, 'folder'), (tmp_path / 'none.jpg', 'does not exist'), ('/dev/zero', 'regular file'), ('a\0b', ''), ('', ''), (None, 'no picture'), (3, 'int'), (tmp_path / 'loop', ''),
                      (tmp_path / 'dangling.jpg', 'does not exist'), ('x' * 5000, ''), ([PHOTO], 'list')]:
        with pytest.raises(ImageError, match=word or '.'): open_image(src)
    PHOTO.save(tmp_path / 'png.jpg', format='PNG')
    assert np.array_equal(np.asarray(open_image(tmp_path / 'png.jpg')), np.asarray(PHOTO))


@pytest.mark.parametrize('resize', ['crop', 'squish', 'pad'])
@pytest.mark.parametrize('size', [(1, 1), (1, 5000), (5000, 1), (3, 2), (224, 224), (640, 480), (481, 641)])
def test_fitting_any_shape(resize, size):
    pre = Preprocess(64, resize=resize)
    a = pre.array(Image.new('RGB', size, (255, 255, 255)))
    assert a.shape == (3, 64, 64) and a.dtype == np.float32 and np.isfinite(a).all() and a.flags.c_contiguous
    white = (1 - np.array(pre.mean)) / pre.std
    if resize != 'pad': assert np.allclose(a, white[:, None, None], atol=1e-4)
    assert np.array_equal(a, Preprocess.from_dict(pre.to_dict()).array(Image.new('RGB', size, (255, 255, 255))))


def test_centre_crop_takes_the_centre():
    a = np.zeros((100, 200, 3), np.uint8)
    a[:, 50:150] = 255
    assert np.asarray(Preprocess(50).image(Image.fromarray(a)))[:, 2:-2].min() > 250
    half = np.zeros((200, 200, 3), np.uint8)
    half[50:150, 50:150] = 255
    assert np.asarray(Preprocess(50, crop_pct=.5).image(Image.fromarray(half)))[2:-2, 2:-2].min() > 250


def test_downscaling_is_antialiased():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(np.asarray(Preprocess(40).image(Image.fromarray(stripes)))[:, 2:-2].astype(int) - 127).max() <= 2


# ---------------------------------------------------------------- what a file says about its picture may be wrong

def corrupt_exif():
    "Orientation 6 and a rational of -1/0, as a camera once wrote it."
    entries = struct.pack('<HHIHH', 0x0112, 3, 1, 6, 0) + struct.pack('<HHII', 0x829A, 10, 1, 38)
    return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 2) + entries + struct.pack('<I', 0) + struct.pack('<ii', -1, 0)


def png_chunk(data, kind, body, crc=None):
    "A PNG with one more chunk behind its header."
    c = struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body) if crc is None else crc)
    return data[:33] + c + data[33:]


def with_app(data, mark, body): return data[:2] + bytes([0xFF, mark]) + struct.pack('>H', len(body) + 2) + body + data[2:]


TALL = PHOTO.rotate(90, expand=True)
FAULTS = {
    'exif rational': (save(TALL, format='JPEG', quality=95, exif=corrupt_exif()), True),
    'exif cut': (save(PHOTO, format='JPEG', quality=95, exif=corrupt_exif()[:20]), False),
    'exif rational in png': (save(TALL, format='PNG', exif=corrupt_exif()), True),
    'text bomb': (png_chunk(save(PHOTO, format='PNG'), b'zTXt', b'Comment\0\0' + zlib.compress(bytes(80_000_000))), False),
    'wrong checksum of a text': (png_chunk(save(PHOTO, format='PNG'), b'tEXt', b'Comment\0hello', crc=1), False),
    'broken profile': (save(PHOTO, format='PNG', icc_profile=b'nothing'), False),
    'broken list of previews': (with_app(save(PHOTO, format='JPEG', quality=95), 0xE2, b'MPF\0II*\0\x08\0\0\0\xff\xff'), False),
    'broken resources': (with_app(save(PHOTO, format='JPEG', quality=95), 0xED, b'Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff'), False),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_beside_the_pixels_are_not_faults(fault):
    data, turned = FAULTS[fault]
    want = np.asarray(TALL if turned else PHOTO).astype(int)
    if turned: want = np.rot90(want, -1)
    got = np.asarray(open_image(data)).astype(int)
    assert got.shape == want.shape and np.abs(got - want).mean() < 12
    assert check_image(data)


def test_check_and_use_agree():
    "2,000 files with a few changed bytes: what `check_image` accepts opens, and what opens is accepted (JPEG, whose check is coarser, too)."
    r, n = np.random.default_rng(3), 0
    jpeg = save(PHOTO, format='JPEG', quality=90, exif=corrupt_exif())
    sources = [jpeg, png_chunk(save(PHOTO, format='PNG', exif=corrupt_exif()), b'tEXt', b'a\0b'), save(PHOTO.convert('RGBA'), format='PNG'), save(PHOTO, format='TIFF')]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(2000):
            data = bytearray(sources[i % len(sources)])
            for j in r.integers(0, min(len(data), 300), r.integers(1, 4)): data[j] = r.integers(256)
            said = []
            for read in (open_image, check_image):
                try: read(bytes(data)); said.append(True)
                except ImageError: said.append(False)
            assert said[0] == said[1], (i, said)
            n += said[0]
    assert 200 < n < 1900


# ---------------------------------------------------------------- colour

def wide(name='p3'):
    "A colour profile: the colorants of Display P3 or Adobe RGB written into Pillow's own sRGB."
    from PIL import ImageCms
    colorants = {'p3': ((.51512, .24120, -.00105), (.29198, .69225, .04189), (.15710, .06657, .78407)),
                 'adobe': ((.60974, .31111, .01947), (.20528, .62567, .06087), (.14919, .06322, .74457))}[name]
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    for tag, xyz in zip((b'rXYZ', b'gXYZ', b'bXYZ'), colorants):
        at = icc.index(tag, 128)
        start = struct.unpack('>I', icc[at + 4:at + 8])[0]
        icc[start + 8:start + 20] = struct.pack('>3i', *(round(v * 65536) for v in xyz))
    return bytes(icc)


@pytest.mark.parametrize('kw', [dict(format='PNG'), dict(format='JPEG', quality=100, subsampling=0), dict(format='TIFF'), dict(format='WEBP', lossless=True)])
def test_display_p3_becomes_srgb(kw):
    "Leaf green: (60, 150, 40) of sRGB is stored as (85, 148, 58) in Display P3."
    data = save(Image.new('RGB', (16, 16), (85, 148, 58)), icc_profile=wide(), **kw)
    assert corner(data) == pytest.approx([60, 150, 40], abs=3)
    assert corner(open_image(data)) == corner(data)                  # once, not twice
    assert corner(Image.open(io.BytesIO(data))) == corner(data)      # as a page hands it over
    assert corner(save(Image.new('RGBA', (16, 16), (85, 148, 58, 255)), format='PNG', icc_profile=wide())) == pytest.approx([60, 150, 40], abs=3)
    assert Preprocess(8).array(data)[:, 4, 4] == pytest.approx(Preprocess(8).array(open_image(data))[:, 4, 4])


def test_profiles_that_change_nothing():
    from PIL import ImageCms
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    for icc in (srgb, b'junk', srgb[:200]): assert np.array_equal(np.asarray(open_image(save(PHOTO, format='PNG', icc_profile=icc))), np.asarray(PHOTO))
    assert corner(save(Image.new('L', (4, 4), 99), format='PNG', icc_profile=wide())) == [99] * 3       # a profile for another kind of picture
    grey = corner(save(Image.new('RGB', (4, 4), (128, 128, 128)), format='PNG', icc_profile=wide('adobe')))
    assert grey == pytest.approx([128] * 3, abs=2)


# ---------------------------------------------------------------- HEIC and AVIF

def heic(im, **kw):
    from pillow_heif import from_pillow
    f = io.BytesIO()
    from_pillow(im).save(f, format='HEIF', quality=90, **kw)
    return f.getvalue()


def test_heic_as_phones_take_it(tmp_path):
    smooth = Image.fromarray(np.stack([np.tile(np.arange(0, 192, 2, dtype=np.uint8), (64, 1))] * 3, -1))
    (tmp_path / 'IMG_0001.HEIC').write_bytes(heic(smooth))
    got = np.asarray(open_image(tmp_path / 'IMG_0001.HEIC')).astype(int)
    assert got.shape == (64, 96, 3) and np.abs(got - np.asarray(smooth)).mean() < 4 and check_image(tmp_path / 'IMG_0001.HEIC') == (96, 64)
    assert '.heic' in IMAGE_SUFFIXES and picture_header(tmp_path / 'IMG_0001.HEIC')[:3] == ('HEIF', 96, 64)
    green = Image.new('RGB', (64, 64), (85, 148, 58))
    green.info['icc_profile'] = wide()
    assert corner(heic(green)) == pytest.approx([60, 150, 40], abs=5)
    assert 'HEIF' not in Image.OPEN                                  # reading the module changed nothing for others
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = smooth.rotate(90, expand=True)                           # a phone turns by a property of the file and says so in EXIF, too: once is enough
    up = np.asarray(open_image(heic(lying, exif=exif.tobytes()))).astype(int)
    assert up.shape == (64, 96, 3) and np.abs(up - np.asarray(smooth)).mean() < 4


@pytest.mark.parametrize('brand,word', [('heic', 'HEIC'), ('avif', 'AVIF'), ('isom', 'video'), ('qt  ', 'video')])
def test_cut_short_is_named_by_its_kind(brand, word):
    whole = {'heic': heic(PHOTO), 'avif': save(PHOTO, format='AVIF')}.get(brand, b'\0\0\0\x18ftyp' + brand.encode() + bytes(400))
    for n in (60, 300):
        with pytest.raises(ImageError, match=word): open_image(whole[:n])


def test_header_without_decoding(tmp_path):
    for i, (data, kind) in enumerate([(JPEG, 'JPEG'), (save(PHOTO, format='PNG'), 'PNG')]):
        (tmp_path / f'{i}.x').write_bytes(data)
        assert picture_header(tmp_path / f'{i}.x') == (kind, *PHOTO.size, 'RGB', len(data), False)
    (tmp_path / 'text').write_text('x')
    assert picture_header(tmp_path / 'text') is None and picture_header(tmp_path / 'none') is None and picture_header(tmp_path) is None
