"""Images per second of this package's loaders next to fastai's and torchvision's, in one interleaved run.

    python data_prep/bench_data.py FOLDER_OR_CIFAR_ZIP [--size 32] [--bs 128] [--n 10000] [--rounds 5] [--workers 2] [--train EPOCHS]

Small pictures: the same augmentation everywhere (shift by up to an eighth of the side, edges mirrored, and left-right flip). Above 64 px: random
resized crop and flip. `--train` also trains one small net on the plain and on the fast batches and compares the validation accuracy.
"""
import argparse
import statistics
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings('ignore')

import torch
from fastai.vision.all import (CropPad, CrossEntropyLossFlat, Flip, ImageDataLoaders, Learner, Normalize, PadMode, ProgressCallback, RandomCrop, RandomResizedCrop,
                               accuracy, imagenet_stats, nn, set_seed)
from torchvision import datasets, transforms as T

from silkworm_app.data.folder import DataError
from silkworm_app.data.splits import find_splits
from silkworm_app.data.loaders import image_dls


def unzip(source, dest, n):
    "The first `n` training pictures (balanced) of an archive `NAME/{train,test}/<class>/<picture>`, as a folder."
    seen = {}
    with zipfile.ZipFile(source) as z:
        names = [m for m in sorted(z.namelist()) if not m.endswith('/') and '/train/' in m and '..' not in m]
        per = n // len({m.split('/')[-2] for m in names})
        for m in names:
            c = m.split('/')[-2]
            seen[c] = seen.get(c, 0) + 1
            if seen[c] <= per: z.extract(m, dest)
    return next(Path(dest).rglob('train')).parent


def loaders(path, splits, size, bs, workers):
    "`{name: (train loader, seconds to build)}`; all see the same training pictures."
    from torch.utils.data import DataLoader, Subset
    small, pad = size <= 64, size // 8
    train = {Path(p).resolve() for p, _ in splits.train}
    out = {}

    def plain():
        item = [CropPad(size + 2 * pad, pad_mode=PadMode.Reflection), RandomCrop(size)] if small else [RandomResizedCrop(size, min_scale=.6, ratio=(.85, 1.18))]
        files = [p for s in (splits.train, splits.valid) for p, _ in s]
        label = {p: c for s in (splits.train, splits.valid) for p, c in s}
        from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, IndexSplitter
        # what ImageDataLoaders.from_folder builds, with the split fixed to the one the others use
        block = DataBlock((ImageBlock, CategoryBlock), get_y=label.get, splitter=IndexSplitter(range(len(splits.train), len(files))), item_tfms=item,
                          batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)])
        return ImageDataLoaders.from_dblock(block, files, bs=bs, num_workers=workers)

    def torchvision():
        aug = [T.RandomCrop(size, pad, padding_mode='reflect')] if small else [T.RandomResizedCrop(size, (.6, 1.), (.85, 1.18))]
        ds = datasets.ImageFolder(path / 'train' if (path / 'train').is_dir() else path, T.Compose(aug + [T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*imagenet_stats)]))
        ds = Subset(ds, [i for i, (p, _) in enumerate(ds.samples) if Path(p).resolve() in train])
        return DataLoader(ds, bs, shuffle=True, drop_last=True, num_workers=workers)

    crop = dict(pad=.125, flip=True) if small else [{'RandomResizedCrop': dict(scale=(.6, 1.), ratio=(.85, 1.18))}, {'HorizontalFlip': {}}]
    item = [{'PadIfNeeded': dict(min_height=size + 2 * pad, min_width=size + 2 * pad, border_mode=4)}, {'RandomCrop': dict(height=size, width=size)}, {'HorizontalFlip': {}}] if small else crop
    makers = {'fastai from_folder': plain, 'torchvision ImageFolder': torchvision, 'ours, picture by picture': lambda: image_dls(splits, size, bs, item, num_workers=workers)}
    if small: makers['ours, fast'] = lambda: image_dls(splits, size, bs, crop, fast=True)
    else: makers['ours, cached'] = lambda: image_dls(splits, size, bs, item, num_workers=workers, cache=tempfile.mkdtemp(prefix='bench_cache_'))
    for name, make in makers.items():
        t = time.perf_counter()
        dls = make()
        out[name] = dls, time.perf_counter() - t
    return out


def one_pass(dl):
    t, n = time.perf_counter(), 0
    for x, y in dl: n += len(y)
    if x.device.type == 'cuda': torch.cuda.synchronize()
    return n / (time.perf_counter() - t)


def net(classes):
    block = lambda i, o: [nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def fit(dls, epochs, seed, classes):
    set_seed(seed)
    learn = Learner(dls, net(classes), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    t = time.perf_counter()
    with learn.no_logging(): learn.fit_one_cycle(epochs, 5e-3)
    return float(learn.recorder.values[-1][-1]), time.perf_counter() - t


def main(source, size, bs, n, rounds, workers, train):
    with tempfile.TemporaryDirectory() as tmp:
        path = unzip(source, tmp, n) if Path(source).is_file() else Path(source)
        if not (path / 'train').is_dir(): print(f'note: {path} has no train folder; a part of it is used')
        splits = find_splits(path, group=None)
        built = loaders(path, splits, size, bs, workers)
        runs = {name: [] for name in built}
        for r in range(rounds + 1):
            for name, (dls, _) in built.items():
                speed = one_pass(getattr(dls, 'train', dls))
                if r: runs[name].append(speed)                       # the first round warms up
        base = statistics.median(runs['fastai from_folder'])
        dev = getattr(built['fastai from_folder'][0], 'device', 'cpu')
        print(f'{len(splits.train)} training pictures, {size} px, batches of {bs}, {workers} workers, {torch.get_num_threads()} torch threads, {dev}; median of {rounds} interleaved passes (lowest to highest)')
        for name, v in runs.items():
            m = statistics.median(v)
            print(f'{name:26} {m:9.0f} images/s ({min(v):.0f} to {max(v):.0f})   {m/base:5.1f} x from_folder   built in {built[name][1]:.1f} s')
        if train:
            for name in ('fastai from_folder', 'ours, fast' if size <= 64 else 'ours, cached'):
                got = [fit(built[name][0], train, seed, len(splits.classes)) for seed in range(3)]
                acc = [a for a, _ in got]
                print(f'{name:26} validation accuracy after {train} epochs, 3 seeds: {" ".join(f"{a:.3f}" for a in acc)}, mean {statistics.mean(acc):.3f}; {statistics.mean(t for _, t in got):.0f} s per training')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('source', help='image folder, or a CIFAR zip of picture folders')
    for k, v in dict(size=32, bs=128, n=10000, rounds=5, workers=2, train=0).items(): p.add_argument(f'--{k}', type=int, default=v)
    args = p.parse_args()
    try: main(**vars(args))
    except (DataError, OSError, zipfile.BadZipFile) as e:
        print(f'bench_data: {e}', file=sys.stderr)
        sys.exit(2)
