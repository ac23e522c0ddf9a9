#!/usr/bin/env python3
"""The peak of memory of `Segmenter.stream` on a short and a long film, read as a file and pushed live: it must not grow.

    python tests/memory.py                  two minutes and two hours; exit code 1 where the long one takes a tenth more
    python tests/memory.py 30 1800          other lengths, in seconds
    python tests/memory.py --model fake     a model that costs nothing, for the memory of the reading alone

The films are made on the spot: 64 × 48 pixels, 5 frames a second, noise for sound at 48 kHz. The model that ships looks
once in 10 seconds. Each film has a process of its own. Linux only: the peak is read from /proc.
"""
import argparse, re, subprocess, sys, tempfile
from pathlib import Path
from threading import Thread

import imageio_ffmpeg
import torch

from ppqg_nb.segmenter import Segmenter
from ppqg_nb.sources import Live
from ppqg_nb.vct import VCT

FPS, RATE, LOOKS = 5, 48000, .1


def film(path, seconds):
    "A test picture that moves, and noise."
    picture, sound = f'testsrc2=size=64x48:rate={FPS}', f'anoisesrc=sample_rate={RATE}:amplitude=.1:seed=0'
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-loglevel', 'error', '-f', 'lavfi', '-i', picture, '-f', 'lavfi', '-i', sound,
                    '-t', str(seconds), '-c:v', 'libx264', '-preset', 'ultrafast', '-c:a', 'aac', '-y', path], check=True)
    return path


def pushed(seconds):
    "A `Live` of noise, pushed as fast as it is read."
    live, rng = Live(RATE, patience=60.), torch.Generator().manual_seed(0)
    def push():
        with live:
            for k in range(FPS * seconds):
                live.sound(torch.rand(RATE // FPS, generator=rng) / 10)
                if not live.frame((k + 1) / FPS, torch.randint(256, (3, 48, 64), generator=rng, dtype=torch.uint8)): return
    Thread(target=push, daemon=True).start()
    return live


def measure(kind, seconds, model):
    "Looks, and the peak of this process in MB."
    torch.set_num_threads(1)
    if model == 'fake':
        from test_segmenter import Fake
        model = Fake()
    else: model = VCT.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        source = film(Path(folder)/'film.mp4', seconds) if kind == 'file' else pushed(seconds)
        looks = sum(1 for _ in Segmenter(model).stream(source, LOOKS))
    return looks, int(re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('seconds', nargs='*', type=int, default=[120, 7200], help='lengths of the films (default: 120 7200)')
    parser.add_argument('--model', default='scenes-tiny', help="a model for VCT.from_pretrained, or 'fake'")
    parser.add_argument('--one', choices=['file', 'live'], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(*measure(args.one, args.seconds[0], args.model))
    grown = False
    for kind in ('file', 'live'):
        peaks = []
        for seconds in args.seconds:
            command = [sys.executable, __file__, '--one', kind, '--model', args.model, str(seconds)]
            looks, peak = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            peaks.append(float(peak))
            print(f'{kind}  {seconds:6} s  {looks:>5} looks  {peaks[-1]:6.0f} MB', flush=True)
        grown |= max(peaks) > 1.1 * peaks[0]
    sys.exit(grown)


if __name__ == '__main__': main()
