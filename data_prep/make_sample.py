"Draw the built-in synthetic sample: python data_prep/make_sample.py [DEST] [--n_per_class 200] [--size 96] [--seed 0]"
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description='Draw the synthetic sample: five classes of larva-like shapes, made by a program, no photographs.')
    p.add_argument('dest', nargs='?', default='data/synthetic_silkworm_sample', help='folder to make (default: %(default)s)')
    p.add_argument('--n_per_class', type=int, default=200, help='pictures per class over train, valid and test (default: %(default)s)')
    p.add_argument('--size', type=int, default=96, help='side in pixels (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0, help='the same seed draws the same pictures (default: %(default)s)')
    args = p.parse_args()
    from silkworm_app.data.sample import draw_sample
    try: dest = draw_sample(args.dest, args.n_per_class, args.size, args.seed)
    except (ValueError, OSError) as e:
        print(f'make_sample: {e}', file=sys.stderr)
        sys.exit(2)
    print(f'{dest}: {sum(1 for _ in dest.rglob("*.jpg"))} drawn pictures of {args.size} px in {len(list((dest/"train").iterdir()))} classes')
