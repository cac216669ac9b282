"""Does cropping to the animal raise the honest figure? Cross-validation over source photographs, with and without

    python experiments/silkworm_crop.py FOLDER [--seeds 20 21 22]

The animal is what differs in colour from the border of the picture (Mahalanobis distance in Lab), refined by GrabCut; the square around it is cut out.
"""
import argparse, statistics, tempfile
from pathlib import Path

import cv2
import numpy as np

from silkworm_app import experiment

ARMS = ('relu', 'series', 'chain, act_num 1, mixed', 'chain, mixed') # of the grid beside this file

def subject_box(im): # BGR picture
    "`(top, left, side)` of a square around what does not look like the border"
    h,w = im.shape[:2]
    scale = 256/max(h, w)
    small = cv2.resize(im, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    H,W = small.shape[:2]
    b,lab = max(3, H//20),cv2.cvtColor(small, cv2.COLOR_BGR2LAB).astype(float)
    border = np.concatenate([o.reshape(-1, 3) for o in (lab[:b], lab[-b:], lab[:,:b], lab[:,-b:])])
    off,inv = lab - border.mean(0),np.linalg.inv(np.cov(border.T) + 20*np.eye(3))
    far = cv2.GaussianBlur(np.sqrt(np.einsum('hwi,ij,hwj->hw', off, inv, off)), (0,0), 4)
    y,x = np.mgrid[:H,:W]
    far = far*np.exp(-(((y-H/2)/(.4*H))**2 + ((x-W/2)/(.4*W))**2)/2)
    mask = np.where(far > np.quantile(far, .6), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    guess = mask == cv2.GC_PR_FGD
    mask[:b],mask[-b:],mask[:,:b],mask[:,-b:] = (cv2.GC_BGD,)*4
    cv2.grabCut(small, mask, None, np.zeros((1,65)), np.zeros((1,65)), 5, cv2.GC_INIT_WITH_MASK)
    front = (mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)
    if front.mean() < .02: front = guess
    ends = lambda n: np.searchsorted(np.cumsum(n)/n.sum(), [.02, .98])
    (top,bottom),(left,right) = ends(front.sum(1)),ends(front.sum(0))
    side = min(1.08*max(bottom-top, right-left) + 1, H, W)
    corner = lambda a,z,n: int(np.clip((a+z+1-side)/2, 0, n-side)/scale)
    return corner(top, bottom, H),corner(left, right, W),int(side/scale)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('folder'); p.add_argument('--seeds', type=int, nargs='+', default=[20,21,22])
    a = p.parse_args()
    settings = {r['arm']: r for r in experiment.read_grid(Path(__file__).with_name('silkworm_tries_cpu.yaml')).runs}
    items,classes,note = experiment._photos(a.folder)
    print(note)
    with tempfile.TemporaryDirectory() as d:
        cropped = []
        for i,(path,c,group) in enumerate(items):
            im = cv2.imread(path)
            t,l,s = subject_box(im)
            out = Path(d)/f'{i}.png'
            cv2.imwrite(str(out), im[t:t+s,l:l+s])
            cropped.append((str(out), c, group))
        for way,its in (('whole pictures', items), ('cropped', cropped)):
            experiment._photos = lambda *_: (its, classes, note)
            for arm in ARMS:
                found = []
                for seed in a.seeds:
                    counts = sum(np.array(experiment.run_one({**settings[arm], 'source': a.folder, 'seed': seed, 'fold': f})[0]['by_class'], float) for f in range(5))
                    found.append(100*float((counts[:,0]/counts[:,1]).mean()))
                print(f'{way}, {arm}: balanced accuracy {statistics.mean(found):.1f} % ({", ".join(f"{o:.1f}" for o in found)})', flush=True)

if __name__ == '__main__': main()
