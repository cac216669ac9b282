"silkworm-data crop: single objects on a plain ground are cut out, and nothing else."
import csv
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from silkworm_app.data.cli import main
from silkworm_app.data.crop import crop, cut_out, find_object
from silkworm_app.data.folder import DataError
from silkworm_app.data.imaging import open_image
from silkworm_app.data.sample import draw_larva
from conftest import untar


def cocoon(ground, side=(640, 480), at=(300, 200), size=(120, 70), seed=0, soft=0):
    "An oval with a grain on a noisy ground"
    rng = np.random.default_rng(seed)
    grain = Image.fromarray(np.clip(rng.normal(0, 14, (*side[::-1], 1)) + np.array([205, 185, 140]), 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    im, mask = Image.fromarray(np.clip(rng.normal(ground, 1.5, (*side[::-1], 3)), 0, 255).astype(np.uint8)), Image.new('L', side)
    ImageDraw.Draw(mask).ellipse((at[0] - size[0]/2, at[1] - size[1]/2, at[0] + size[0]/2, at[1] + size[1]/2), fill=255)
    im.paste(grain, (0, 0), mask)
    return im.filter(ImageFilter.GaussianBlur(soft)) if soft else im


@pytest.mark.parametrize('ground', [20, 110, 250])
@pytest.mark.parametrize('size', [(50, 30), (120, 70), (400, 330)])
def test_the_object_is_found_where_it_is(ground, size):
    for soft in (0, 3):
        f = find_object(cocoon(ground, at=(300, 220), size=size, soft=soft))
        assert f.box, f.why
        wanted = np.array([300 - size[0]/2, 220 - size[1]/2, 300 + size[0]/2, 220 + size[1]/2])
        assert np.abs(np.array(f.box) - wanted).max() <= 12, (f.box, wanted)


def test_what_is_no_single_object_is_not_cut():
    two = cocoon(240, at=(150, 200))
    two.paste(cocoon(240, at=(150, 200)).crop((60, 140, 240, 260)), (380, 250))
    assert find_object(two).why == 'several objects'
    assert find_object(cocoon(240, at=(620, 200))).why == "the object is cut by the picture's edge"
    assert find_object(draw_larva('healthy', 256, 0)).why                     # on a leaf
    padded = Image.new('RGB', (400, 400), (110, 110, 110))
    padded.paste(draw_larva('healthy', 256, 1), (70, 70))
    assert find_object(padded).why and find_object(padded.rotate(10, fillcolor=(110, 110, 110))).why


def test_a_folder(tmp_path, capsys):
    src = tmp_path/'src'
    for c, n in (('a', 3), ('b', 2)):
        (src/c).mkdir(parents=True)
        for i in range(n): cocoon(250, seed=i, size=(60 + 60*i, 40 + 30*i)).save(src/c/f'{i}.png')
    exif = Image.Exif()
    exif[0x0112] = 6                                                          # the phone was held upright: turn right by 90 degrees
    cocoon(250, size=(160, 60)).save(src/'a/phone.jpg', exif=exif, quality=95)
    draw_larva('healthy', 200, 0).save(src/'b/leaf.png')
    (src/'b/broken.jpg').write_bytes(b'no picture')
    assert main(['crop', str(src), str(tmp_path/'out')]) == 0
    said = capsys.readouterr().out
    assert 'b/leaf.png' in said and 'b/broken.jpg: cannot be opened' in said and 'out of 6 of 8' in said
    cut = {p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*.*')}
    assert cut == {'a/0.png', 'a/1.png', 'a/2.png', 'a/phone.jpg', 'b/0.png', 'b/1.png', 'cropped.csv', 'sheet.html'}
    sizes = [Image.open(tmp_path/f'out/a/{i}.png').size for i in range(3)]
    assert all(w == h for w, h in sizes) and sizes[0] < sizes[1] < sizes[2]
    f = find_object(open_image(tmp_path/'out/a/phone.jpg'))
    assert f.box[3] - f.box[1] > f.box[2] - f.box[0] and not Image.open(tmp_path/'out/a/phone.jpg').getexif()     # upright
    rows = list(csv.DictReader((tmp_path/'out/cropped.csv').open(encoding='utf-8-sig')))
    assert len(rows) == 8 and sum(bool(r['file']) for r in rows) == 6
    assert main(['crop', str(src), str(tmp_path/'same'), '--same-scale', '--others', 'copy']) == 0
    assert len({Image.open(p).size for p in (tmp_path/'same').rglob('[0-9].png')}) == 1 and (tmp_path/'same/b/leaf.png').is_file()
    assert main(['crop', str(src), str(tmp_path/'out')]) == 2 and 'exists; choose another folder, or move it away' in capsys.readouterr().err
    (tmp_path/'leaves/a').mkdir(parents=True)
    draw_larva('healthy', 200, 0).save(tmp_path/'leaves/a/0.png')
    with pytest.raises(DataError, match='nothing was written'): crop(tmp_path/'leaves', tmp_path/'none', show=False)
    assert not (tmp_path/'none').exists()


def test_pictures_that_cannot_be_opened_are_counted_together(tmp_path):
    (tmp_path/'src').mkdir()
    cocoon(250).save(tmp_path/'src/0.png')
    for i in '12': (tmp_path/f'src/{i}.jpg').write_bytes(b'no picture')
    shutil.make_archive(tmp_path/'src', 'zip', tmp_path/'src')
    for src in ('src', 'src.zip'):
        whys = set(crop(tmp_path/src, tmp_path/f'{src} out', show=False)['others'].values())
        assert len(whys) == 1 and whys.pop().startswith('cannot be opened: it is ')


def test_pupae(tmp_path, tmp_path_factory):
    out = crop(untar('pupae', tmp_path_factory), tmp_path/'out', show=False)
    assert out['cut'] >= 124 and set(out['others'].values()) <= {"the object is cut by the picture's edge"}


@pytest.mark.parametrize('at', [(160, 140), (260, 350), (530, 60)])
def test_an_object_is_cut_out_whole_and_square(at):
    im = cocoon(240, (600, 400), at, (120, 80))
    found = find_object(im)
    cut = cut_out(im, found)
    b = find_object(cut).box
    assert cut.size == (round(found.side*1.3),)*2 and abs(b[2] - b[0] - 120) <= 10 and abs(b[3] - b[1] - 80) <= 10
    if at[0] == 160: assert abs(b[0] + b[2] - cut.width) < 8 and abs(b[1] + b[3] - cut.height) < 8  # in the middle, far from the edges


def test_cutting_reaches_the_last_row():
    im = cocoon(240, (600, 400), (260, 350), (120, 80))
    found = find_object(im)
    im.putpixel((260, 399), (1, 2, 3))
    assert (np.asarray(cut_out(im, found)) == (1, 2, 3)).all(2)[-1].any()


def test_one_scale_is_that_of_the_largest(tmp_path):
    (tmp_path/'s/a').mkdir(parents=True)
    for k, w in enumerate((60, 200)): cocoon(240, (600, 400), (300, 130), (w, 60)).save(tmp_path/f's/a/{k}.png')
    crop(tmp_path/'s', tmp_path/'o', same_scale=True, show=False)
    side = round(find_object(Image.open(tmp_path/'s/a/1.png')).side*1.3)
    assert {Image.open(p).size for p in (tmp_path/'o').rglob('*.png')} == {(side, side)}
