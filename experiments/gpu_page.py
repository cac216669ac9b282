"The page of experiments/gpu.sh from the files that it left: python experiments/gpu_page.py OUT"
import json
import sys
from pathlib import Path

from silkworm_app.lab.bench import markdown

out = Path(sys.argv[1])
read = lambda name: (out/name).read_text(encoding='utf-8').strip() if (out/name).is_file() else ''
lines = ['# On a GPU', 'Made by `sh experiments/gpu.sh`.']
if exact := read('exact.txt'): lines += ['## Exactness', f'`pytest -m cuda tests/test_cuda.py`: {exact.splitlines()[-1].strip("= ")}']
for name in ('layers', 'nets', 'act_num', 'inference', 'compiled_layers', 'compiled_inference', 'compiled_nets'):
    if found := read(f'{name}.json'): lines += [f'## {name}' + ('' if (out/f'{name}.md').is_file() else ', as far as it came'), markdown(json.loads(found))]
if found := read('cifar100.json'):
    test = json.loads(found).get('test') or {}
    lines += ['## A CIFAR-100 training', ', '.join(f'{k}: {v:.4g}' for k, v in test.items() if isinstance(v, (int, float)))]
lines += [read(f'{grid}.md').replace('# ', '## ', 1) for grid in ('cifar100_gpu', 'position_gpu', 'act_num_gpu')]
lines += ['## Left out', read('left_out.txt') or 'Nothing.']
(out/'gpu.md').write_text('\n\n'.join(filter(None, lines)) + '\n', encoding='utf-8')
print(f'written: {out/"gpu.md"}')
