"""A public silkworm benchmark, fetched from where its pictures are: `python data_prep/public.py DEST`, or `make public DEST=folder`.

`silkworms.csv` lists pictures by repository, commit and path, with their sha256, class, photograph and fold. No picture is part of this project: they stay with their
owners, and so do their licences (see docs/data.md). What is fetched is kept in DEST.fetched, so that an interrupted run goes on; DEST is a set with folds as `silkworm-data prepare`
makes it, and `silkworm-train --data_path DEST` cross-validates over them.
"""
import argparse
import csv
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from silkworm_app.data.folder import DataError
from silkworm_app.data.merge import combine
from silkworm_app.data.prepare import check_places
from silkworm_app.data.progress import Progress
from silkworm_app.files import one_line, replacing, sha256_of, shown

LIST = Path(__file__).with_name('silkworms.csv')
AGENT = 'silkworm_app-public-benchmark/1.0'


class Gone(Exception):
    "A picture that cannot be had; the sentence says why."


def read_list(path=LIST):
    "The rows of a list; `DataError` where it lacks a column."
    with open(path, newline='', encoding='utf-8-sig') as f: rows = list(csv.DictReader(f))
    lacks = {'repository', 'commit', 'path', 'sha256', 'class', 'group', 'fold'} - set(rows[0] if rows else ())
    if lacks: raise DataError(f'{shown(path)} lacks the column(s) {", ".join(sorted(lacks))}')
    return rows


def address(row, mirror): return f'{mirror.rstrip("/")}/{row["repository"]}/{row["commit"]}/{urllib.parse.quote(row["path"])}'


def fetch(url, tries=4, wait=2., most=50 * 2**20):
    "The bytes at an address; waits longer after each failure that may pass (429, 5xx, no answer). Raises `Gone`."
    for k in range(tries):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={'User-Agent': AGENT}), timeout=60) as r:
                data, whole = r.read(most + 1), r.headers.get('Content-Length', '')
            if len(data) > most: raise Gone(f'is larger than {most // 2**20} MB')
            if not whole.isdigit() or len(data) == int(whole): return data
            why, after = f'only {len(data):,} of {int(whole):,} bytes came', ''                # `read` says nothing of a connection that was cut
        except urllib.error.HTTPError as e:
            if e.code not in (429, 500, 502, 503, 504): raise Gone(f'is gone from there ({e.code} {e.reason})') from None
            why, after = f'{e.code} {e.reason}', e.headers.get('Retry-After', '')
        except (OSError, http.client.HTTPException) as e: why, after = str(getattr(e, 'reason', e)), ''
        if k + 1 < tries: time.sleep(min(120., float(after)) if after.isdigit() else wait * 2**k)
    raise Gone(f'cannot be fetched ({why})')


def fetch_all(rows, folder, mirror, pause=.2, wait=2.):
    "Fetch what is not there yet, one after the other; `(file of each row or None, sentences)`."
    files, said, bar, failed = [], [], Progress('fetching', len(rows)), 0
    for r in rows:
        to = folder/f'{r["sha256"][:16]}{Path(r["path"]).suffix.lower()}'
        bar.step()
        if to.is_file() and sha256_of(to) == r['sha256']: files.append(to); continue
        try:
            if failed >= 5: raise Gone('was not tried, since the last five could not be fetched either: run it again later')
            data = fetch(address(r, mirror), wait=wait)
            failed = 0
            if hashlib.sha256(data).hexdigest() != r['sha256']: raise Gone('has changed: its sha256 is another than the listed one')
            with replacing(to) as part: part.write_bytes(data)
            files.append(to)
            time.sleep(pause)
        except Gone as e:
            failed += str(e).startswith('cannot')
            files.append(None)
            said.append(f'{r["path"]} of {r["repository"]} {e}')
    bar.done()
    return files, said


def main(argv=None):
    p = argparse.ArgumentParser(description='Fetch the public silkworm pictures of silkworms.csv, and make a set with folds of them.')
    p.add_argument('dest', help='folder to make')
    p.add_argument('--list', default=LIST, help='list of pictures (default: %(default)s)')
    p.add_argument('--mirror', default='https://raw.githubusercontent.com', help='where repositories are read from (default: %(default)s)')
    p.add_argument('--source', action='append', default=[], help='folder or archive of more pictures by class, fetched by hand')
    p.add_argument('--pause', type=float, default=.2, help='seconds between two pictures (default: %(default)s)')
    p.add_argument('--wait', type=float, default=2., help='seconds before a second try, doubled after each (default: %(default)s)')
    p.add_argument('--overwrite', action='store_true', help='replace a set made before')
    args = p.parse_args(argv)
    dest = Path(args.dest)
    fetched = Path(f'{os.path.abspath(dest)}.fetched')
    try:
        rows = read_list(args.list)
        check_places(fetched, dest, args.overwrite)
        fetched.mkdir(parents=True, exist_ok=True)
        files, said = fetch_all(rows, fetched, args.mirror, args.pause, args.wait)
        for s in said: print(s, file=sys.stderr)
        known = [r | dict(file=f, split=r['fold'], source=f'{r["repository"]}/{r["path"]}') for r, f in zip(rows, files) if f]
        if len({r['class'] for r in known}) < 2 or len({r['split'] for r in known}) < 2: raise DataError('too few pictures could be fetched to make a set of them; what came is kept, run it again')
        out = combine(known, args.source, dest, 'the public list of silkworm pictures', notes=[f'{len(said)} of {len(rows)} listed pictures are missing' if said else 'all listed pictures are there'])
    except (ValueError, OSError) as e: print(f'public: {shown(one_line(e, None))}', file=sys.stderr); return 2
    except KeyboardInterrupt: print(f'public: interrupted; what was fetched is kept in {fetched}, run it again', file=sys.stderr); return 130
    for n in out['notes']: print(f'note: {n}')
    print(f'{len(known)} of {len(rows)} pictures fetched; ' + ', '.join(f'{c} {n}' for c, n in out['distinct'].items()) + ' photographs')
    print(f'{dest} is ready: silkworm-train --data_path {dest} --output_dir RUN')
    return int(bool(said))


if __name__ == '__main__': sys.exit(main())
