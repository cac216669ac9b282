"The page of experiments/gpu.sh from the files that it left: python experiments/gpu_page.py OUT"
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
lines = ['# On a GPU', '', 'Made by `sh experiments/gpu.sh`.', '']
results = {p.stem: json.loads(p.read_text()) for p in sorted(out.glob('*.json'))}
machines = [r['machine'] for r in results.values() if 'machine' in r]
if machines: lines += [', '.join(f'{k}: {v}' for k, v in machines[0].items() if k in ('gpu', 'cpu', 'torch', 'python', 'device')), '']
if (exact := out/'exact.txt').exists(): lines += ['## Exactness', '', f'`pytest -m cuda tests/test_cuda.py tests/kernel_checks.py`: {exact.read_text().strip().splitlines()[-1].strip("= ")}', '']
for name, r in results.items():
    if 'rows' not in r: continue
    lines += [f'## {name}', '', f'`silkworm-bench --device {r["machine"]["device"]} --sections {" ".join(r["settings"]["sections"])}`: milliseconds, median and quartiles.', '',
              '| what | arm | ms | quartiles | times as fast as the first |', '|---|---|---|---|---|']
    lines += [f'| {o["what"]} | {o["arm"]} | {o["ms"]:.3f} | {o["q1"]:.3f} to {o["q3"]:.3f} | {o["faster"]:.2f} |' if 'ms' in o else f'| {o["what"]} | {o["arm"]} | {o.get("note", "")} | | |' for o in r['rows']]
    lines.append('')
if 'cifar100' in results:
    test = results['cifar100'].get('test') or results['cifar100'].get('valid') or {}
    lines += ['## A CIFAR-100 training', '', ', '.join(f'{k}: {v:.4g}' for k, v in test.items() if isinstance(v, (int, float))), '']
for grid in ("cifar100_gpu", "position_gpu", "act_num_gpu"):
    if (file := out/f"{grid}.md").exists(): lines += [f"## {grid}", "", file.read_text(), ""]
left = (out/'left_out.txt').read_text().strip() if (out/'left_out.txt').exists() else ''
lines += ['## Left out', '', left or 'Nothing.', '']
(out/'gpu.md').write_text('\n'.join(lines), encoding='utf-8')
print(f'written: {out/"gpu.md"}')
