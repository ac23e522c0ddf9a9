"Sources that are no file: nothing lost or mixed up, nothing left behind, and the sound that a live frame hears ends at it."
import gc
import io
import math
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clips import noise, save
from ppqg_nb.audio import RATE, SPAN, resample
from ppqg_nb.sources import HELD, QUEUED, Live, as_file, capture, device_frames, on_clock
from ppqg_nb.video import Address, MediaError, probe, read_frames

IMAGE = torch.zeros(3, 8, 8, dtype=torch.uint8)


def run(f, *args):
    thread = threading.Thread(target=f, args=args, daemon=True)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    "Temporary files go to a folder of the test's own, which must be empty at the end."
    (tmp_path/'temp').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path/'temp'))
    yield
    assert list((tmp_path/'temp').iterdir()) == []


@pytest.fixture
def source(tmp_path): return save(tmp_path/'a.mkv', fps=25, wave=noise())


def test_a_path_and_an_address_stay_what_they_are(source, tmp_path):
    for given in (source, str(source), tmp_path/'missing.mp4', Address('http://127.0.0.1:1/a.mp4')):
        with as_file(given) as path: assert path is given


def test_a_file_object_is_copied(source):
    "From where it stands; also a large one, in blocks."
    data = source.read_bytes()
    with as_file(io.BytesIO(data)) as path:
        assert path.read_bytes() == data and probe(path).fps == 25
        if os.name == 'posix': assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open(source, 'rb') as file:
        file.seek(100)
        with as_file(file) as path: assert path.read_bytes() == data[100:]
    asked = []
    class Blocks(io.RawIOBase):
        left = 5 * 2**20
        def read(self, n=-1):
            asked.append(n)
            n = min(n, self.left)
            self.left -= n
            return bytes(n)
    with as_file(Blocks()) as path: assert path.stat().st_size == 5 * 2**20
    assert 0 < max(asked) <= 2**20 and min(asked) > 0


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='pipes with names are POSIX')
def test_pipes(source, tmp_path):
    "A pipe of the system, one with a name, and the standard input of a process."
    data = source.read_bytes()
    read_end, write_end = os.pipe()
    run(lambda: open(write_end, 'wb').write(data))
    with open(read_end, 'rb') as pipe, as_file(pipe) as path: assert path.read_bytes() == data
    os.mkfifo(tmp_path/'fifo')
    run((tmp_path/'fifo').write_bytes, data)
    with as_file(tmp_path/'fifo') as path: assert path.read_bytes() == data
    code = ('from ppqg_nb.sources import as_file\nfrom ppqg_nb.video import read_frames\n'
            'with as_file("-") as path: print(sum(1 for _ in read_frames(path)))\nassert not path.exists()')
    done = subprocess.run([sys.executable, '-c', code], input=data, capture_output=True)
    assert done.stdout.strip() == b'75', done.stderr


@pytest.mark.parametrize('given', [io.BytesIO(), io.StringIO('text')], ids=['empty', 'text'])
def test_nothing_through_the_pipe(given):
    with pytest.raises(MediaError) as e, as_file(given): pass
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_the_copy_is_removed_after_an_error(error):
    class Breaks(io.BytesIO):
        def read(self, n=-1): raise error
    with pytest.raises(error), as_file(Breaks()): pass
    with pytest.raises(error), as_file(io.BytesIO(b'film')): raise error


def window(x, t):
    "The 0.975 s up to `t` of a sound at 16 kHz"
    last = round(t * RATE)
    return F.pad(x, (SPAN, 10 * RATE))[last:last + SPAN]


@pytest.mark.parametrize('keep', ['all', 'newest'])
@pytest.mark.parametrize('rate', [8000, 11025, 16000, 44099, 44100, 48000, 96000, 192000])
def test_a_live_frame_hears_what_ends_with_it(rate, keep):
    "Compared with all the sound resampled at once, in pieces of any length."
    rng = np.random.default_rng(rate)
    wave = (rng.normal(size=(2, 4 * rate)) / 8).astype(np.float32)
    whole = resample(F.pad(torch.from_numpy(wave).mean(0), (rate, 0)), rate)
    live, times = Live(rate, keep, patience=60.), np.sort(rng.uniform(.1, 3.9, 8))
    items, n = iter(live), 0
    for t in times:
        while n < (t + .05) * rate:
            step = int(rng.integers(1, rate // 10))
            live.sound(wave[:, n:n + step])
            n += wave[:, n:n + step].shape[1]
        live.frame(t, IMAGE)
        _, frame, heard = next(items)
        assert frame.time == t and heard.dtype == torch.float32 and heard.shape == (SPAN,)
        assert (heard - window(whole, t + 1)).abs().max() < 1e-6


@pytest.mark.parametrize('offset, hears', [(-.98, False), (-.97, True), (-.5, True), (-.002, True), (.002, False), (.4, False)])
def test_window_of_a_live_step(offset, hears):
    sound = np.zeros(4 * RATE, np.float32)
    at = round((2 + offset) * RATE)
    sound[at - 8:at + 8] = .9
    live = Live(RATE)
    live.sound(sound)
    live.frame(2., IMAGE)
    assert bool(next(iter(live))[2].abs().max() > .5) == hears


def test_times_of_sound():
    "Late: silence. Early: cut. Less than 50 ms: as if it followed. At the beginning: to the sample."
    live = Live(RATE, patience=0)
    ones = np.ones(RATE // 2)
    assert live.sound(ones, 10.25) and live.first == round(10.25 * RATE)
    live.sound(2 * ones, 10.79)         # 40 ms late
    live.sound(3 * ones, 12.)           # .75 s late
    live.sound(4 * ones, 12.25)         # half of it is there already
    live.sound(5 * ones, 11.)           # all of it
    wanted = torch.cat([torch.full((n,), v) for n, v in ((8000, 1.), (8000, 2.), (12000, 0.), (8000, 3.), (4000, 4.))])
    assert torch.equal(live.held, wanted)
    live.sound(ones, 1e6)               # a month later: no month of silence is kept
    assert live.first == RATE * 10**6 and len(live.held) == 8000


@pytest.mark.parametrize('rate', [None, 48000])
def test_frames_without_sound_hear_silence(rate):
    live = Live(rate, patience=0)
    for k in range(5): live.frame(k / 5, IMAGE)
    live.close()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for k, (n, frame, heard) in enumerate(live): assert (n, frame.time, float(heard.abs().max())) == (k, k / 5, 0) and len(heard) == SPAN


def test_a_frame_waits_for_its_sound():
    live, got = Live(RATE, patience=60.), []
    reader = run(lambda: got.extend(live))
    live.frame(.5, IMAGE)
    live.sound(np.ones(7999))
    time.sleep(.1)
    assert not got                      # one sample is missing
    live.sound(np.ones(1))
    while not got: time.sleep(.01)
    assert got[0][2][-8000:].min() == 1 and got[0][2][:-8000].abs().max() == 0
    live.frame(1., IMAGE)
    live.sound(None)                    # no more will come: half of what the frame hears is silence
    live.close()
    reader.join(20)
    assert len(got) == 2 and got[1][2].sum() == round(.475 * RATE)


def test_patience_ends_with_a_warning():
    live = Live(RATE, patience=.05)
    live.frame(1., IMAGE)
    with pytest.warns(UserWarning, match='did not come in time'): assert next(iter(live))[2].abs().max() == 0


def test_all_are_kept_and_whoever_pushes_waits():
    live, pushed = Live(16000), []
    def push():
        with live:
            for k in range(200):
                live.sound(np.full(160, k, np.float32))
                live.frame((k + 1) / 100, IMAGE)
                pushed.append(k)
    run(push)
    while len(pushed) < QUEUED: time.sleep(.01)
    time.sleep(.1)
    assert len(pushed) == QUEUED
    got = list(live)
    assert [n for n, *_ in got] == list(range(200))
    for n, _, heard in got[100:]: assert heard[-160:].eq(n).all()


def test_only_the_newest_is_kept():
    live = Live(16000, 'newest')
    for k in range(200):
        live.sound(np.full(160, k, np.float32))
        live.frame((k + 1) / 100, IMAGE)
    live.close()
    [(n, frame, heard)] = live
    assert (n, frame.time) == (199, 2.) and heard[-160:].eq(199).all() and heard[-320:-160].eq(198).all()


@pytest.mark.parametrize('keep', ['all', 'newest'])
def test_memory_does_not_grow(keep):
    "An hour, pushed as fast as it goes by two threads, one of them faster: 8 frames and some seconds of sound."
    live, most, block = Live(8000, keep, patience=60.), [0, 0], np.zeros(4000)
    def sounds():
        while live.sound(block): pass
    def frames():
        with live:
            for k in range(3600): live.frame(k + .5, IMAGE)
    threads = [run(sounds), run(frames)]
    count = 0
    for _, frame, _ in live:
        most = [max(most[0], len(live.frames)), max(most[1], len(live.held))]
        count += 1
    for thread in threads: thread.join(20)
    assert count == 3600 if keep == 'all' else count > 0
    assert most[0] <= QUEUED and most[1] <= (HELD + 2.5) * 8000


def test_sound_that_runs_far_ahead_waits_for_its_frames():
    live, pushed = Live(RATE, patience=60.), []
    live.frame(0., IMAGE)
    thread = run(lambda: [pushed.append(live.sound(np.full(RATE, k, np.float32))) for k in range(12)])
    while len(pushed) < HELD: time.sleep(.01)
    time.sleep(.1)
    assert thread.is_alive() and len(pushed) <= HELD + 1
    items = iter(live)
    for t in (0., 3., 6., 9., 12.):
        if t: live.frame(t, IMAGE)
        heard = next(items)[2]
        if t: assert heard[-15000:].eq(t - 1).all()
        time.sleep(.1)                  # no frame waits: the sound must not run away meanwhile


def test_sound_whose_frames_do_not_come_goes_on():
    "It waits once as long as `patience`, and what nobody heard is forgotten."
    live = Live(RATE, patience=.2)
    items = iter(live)
    live.frame(0., IMAGE)
    began = time.monotonic()
    next(items)
    for k in range(100): assert live.sound(np.full(RATE, k, np.float32))
    assert time.monotonic() - began >= .2 and len(live.held) <= (HELD + 2.5) * RATE
    live.frame(100., IMAGE)
    assert next(items)[2][-15000:].eq(99).all()


def test_who_stops_reading_stops_who_pushes():
    live, told = Live(RATE), []
    def push():
        k = 0
        while live.frame(k / 10, IMAGE) and live.sound(np.zeros(1600)): k += 1
        told.append(k)
    thread = run(push)
    for n, *_ in live:
        if n == 5: break
    gc.collect()
    thread.join(20)
    assert told and live.frame(1e6, IMAGE) is False and live.sound(np.zeros(9)) is False and list(live) == []


def test_an_error_comes_after_the_frames_that_wait():
    live = Live()
    live.frame(0., IMAGE)
    live.close(OSError('unplugged'))
    items = iter(live)
    assert next(items)[0] == 0
    with pytest.raises(OSError, match='unplugged'): next(items)


@pytest.mark.parametrize('push, match', [
    (lambda live: live.frame(1., IMAGE), 'in order'), (lambda live: live.frame(math.nan, IMAGE), 'in order'),
    (lambda live: live.frame(math.inf, IMAGE), 'in order'), (lambda live: live.frame(2., IMAGE.float()), 'torch.uint8'),
    (lambda live: live.frame(2., IMAGE[:1]), '3, H, W'), (lambda live: live.sound(np.zeros((100, 2))), 'channels'),
    (lambda live: live.sound([]), 'empty'), (lambda live: live.sound([math.inf]), 'infinity'),
    (lambda live: live.sound([0.], math.nan), 'time is nan'), (lambda live: Live().sound([0.]), 'has no sound')])
def test_what_cannot_be_pushed(push, match):
    live = Live(RATE)
    live.frame(1., IMAGE)
    with pytest.raises(ValueError, match=match) as e: push(live)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('options', [dict(rate=0), dict(rate=-1), dict(rate=44100.5), dict(rate=math.nan), dict(keep='some')])
def test_nonsense_is_said(options):
    with pytest.raises(ValueError, match='must be'): Live(**options)


needs_lavfi = pytest.mark.skipif('lavfi' not in av.formats_available, reason='this PyAV has no test device')
CAMERA = "lavfi:color=black:size=64x48:rate=20:duration=2,drawbox=color=white:t=fill:enable='gte(t,1)',realtime"
MICROPHONE = "lavfi:aevalsrc='0.5*sin(2*PI*440*t)*gte(t,1)':sample_rate=48000:duration=2,arealtime"


@needs_lavfi
def test_camera_and_microphone():
    "The picture turns white when the tone begins."
    with capture(CAMERA, MICROPHONE, keep='all', patience=10.) as live: got = list(live)
    times = [f.time for _, f, _ in got]
    assert 30 < len(got) <= 40 and times == sorted(times) and got[0][1].image.shape == (3, 48, 64)
    white = next(f.time for _, f, _ in got if f.image.float().mean() > 128)
    tone = next(f.time for _, f, heard in got if heard.abs().max() > .1)
    assert abs(white - tone) < .5


@needs_lavfi
def test_a_camera_alone_and_one_that_is_left():
    before = threading.active_count()
    with capture('lavfi:testsrc=size=64x48:rate=50,realtime') as live:
        for n, frame, heard in live:
            assert heard.abs().max() == 0
            if n >= 5: break
    for _ in range(500):
        if threading.active_count() <= before: break
        time.sleep(.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize('picture, sound', [('v4l2:/dev/video99', None), ('camera', None), ('nonsense:0', None), ('lavfi:', None),
                                            ('hls:http://127.0.0.1:1/a.m3u8', None), ('lavfi:nothing', None), ('lavfi:sine', None),
                                            ('lavfi:testsrc', 'alsa:nothing'), ('lavfi:testsrc', 'lavfi:testsrc')], ids=str)
def test_no_such_device(picture, sound):
    with pytest.raises(MediaError) as e: capture(picture, sound)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


def fake(*items):
    "A device that gives frames, or raises, and then has no more."
    waiting = list(items)
    def demux(stream):
        while waiting:
            item = waiting.pop(0)
            if isinstance(item, Exception): raise item
            yield SimpleNamespace(decode=lambda: [item])
    return SimpleNamespace(demux=demux)


def test_a_device_that_has_nothing_yet():
    "AVFoundation says so, and many cameras begin with a damaged picture; what is unplugged is another matter."
    nothing, damaged, gone = av.error.BlockingIOError(11, ''), av.error.InvalidDataError(1, ''), av.error.OSError(5, '')
    assert list(device_frames(fake(nothing, 1, damaged, nothing, 2, 3), None)) == [1, 2, 3]
    got = device_frames(fake(1, gone), None)
    assert next(got) == 1
    with pytest.raises(OSError): next(got)


def test_each_device_keeps_its_own_times(monkeypatch):
    "A camera's clock is 1000 s ahead; what arrives late by chance is not seen late, and a clock that runs slow is followed."
    now = [0.]
    monkeypatch.setattr('ppqg_nb.sources.monotonic', lambda: now[0])
    rng = np.random.default_rng(0)
    held_up = rng.exponential(.02, 3000)
    def frames(slow):
        for k in range(3000):
            now[0] = k / 25 + held_up[k]
            yield SimpleNamespace(time=1000 + k / 25 * (1 - slow))
    for slow in (0, 1e-4):
        off = np.array([t for t, _ in on_clock(frames(slow), 0.)]) - np.arange(3000) / 25
        assert np.abs(off[60:]).max() < .005 and off.min() > -.002
