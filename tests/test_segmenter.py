"Models on video files: what is heard and seen, when, how it is shown, and that results are whole or not there."
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clips import film, save, sing
from ppqg_nb import segmenter
from ppqg_nb.audio import RATE, SPAN, patches_at, resample
from ppqg_nb.core import PRESETS, Config, class_colors, example_path
from ppqg_nb.masks import label_map, upsample
from ppqg_nb.outputs import segment_into
from ppqg_nb.regions import ClassicRegions, FolderRegions, make_regions, region_map
from ppqg_nb.segmenter import (Object, Segmenter, Step, contenders, folder_beside, font, heard, ink, overlay, place,
                               read_maps, regions, save_labels)
from ppqg_nb.sources import Live
from ppqg_nb.vct import VCT
from ppqg_nb.video import MediaError, probe, read_frames, read_sound


def clip(path, times=tuple(i / 10 for i in range(10)), size=(64, 48), sound=True, rate=48000, **options):
    "A file of a warm square that moves over blue, and a tone of a second."
    images = np.full((len(times), size[1], size[0], 3), (40, 60, 90), np.uint8)
    for i, image in enumerate(images): image[size[1] // 4:size[1] // 4 + 12, (x := 3 * i % (size[0] - 12)):x + 12] = (230, 120, 40)
    wave = .3 * np.sin(2 * np.pi * 330 / rate * np.arange(rate))[None]
    return save(path, times, images, wave if sound else None, rate, **options)


FLAC = dict(codecs=('libx264', 'flac'))
EXACT = dict(codecs=('ffv1', 'flac'), pix_fmt='bgr0')


class Fake:
    "Marks what is redder than it is blue as class 1, if there is any sound; keeps what it was given."
    config = Config(classes=('background', 'warm'), image_size=64)

    def __init__(self): self.frames, self.patches = [], []
    def to(self, device): return self
    def eval(self): return self
    def compose(self, pred): return pred
    def __call__(self, frames, patches, every_layer=True):
        self.frames.append(frames)
        self.patches.append(patches)
        loud = (patches.amax((1, 2)) > math.log(.02)).float()
        return torch.stack([torch.full_like(frames[:, 0], .1), (frames[:, 0] - frames[:, 2]).clamp(min=0) * loud[:, None, None]], 1)


@pytest.fixture
def source(tmp_path): return clip(tmp_path/'source.mp4')


@pytest.mark.parametrize('rate', [8000, 44100, 48000])
def test_each_step_hears_the_patch_around_its_frame(tmp_path, rate):
    source, model = clip(tmp_path/'a.mkv', (0, .1, .13, .4, .45, .9), rate=rate, **FLAC), Fake()
    times = [s.time for s in Segmenter(model).stream(source)]
    wanted = patches_at(resample(*read_sound(source)), RATE, times)
    assert len(times) == 6 and torch.equal(torch.cat(model.patches), wanted)


def test_a_picture_that_stands_still_is_seen_once():
    model, seen = VCT.from_pretrained('scenes-tiny'), []
    model.pyramid.register_forward_hook(lambda m, given, made: seen.append(len(given[0])))
    g = torch.Generator().manual_seed(0)
    pictures, patches = torch.randint(256, (2, 3, 48, 64), generator=g, dtype=torch.uint8), torch.randn(4, 1, 96, 64, generator=g)
    looking = Segmenter(model, 64)
    steps = [looking.steps([('', segmenter.Frame(0., pictures[i]), mel)])[0] for i, mel in zip((0, 0, 1, 1), patches)]
    assert seen == [1, 1]
    alone = [Segmenter(model, 64).step(0., pictures[i], mel) for i, mel in zip((0, 0, 1, 1), patches)]
    assert all(torch.equal(a.maps, b.maps) for a, b in zip(steps, alone)) and not torch.equal(steps[0].maps, steps[1].maps)
    with torch.no_grad(): model.class_head.bias += torch.randn(33, generator=g)
    assert not torch.equal(looking.step(0., pictures[1], patches[3]).maps, alone[3].maps) and len(seen) == 2 + 4 + 1


def abreast(model, n, **options):
    "A segmenter whose looks run `n` side by side, each on one thread."
    looking = Segmenter(model, **options)
    looking.abreast = n
    return looking


class Slow(Fake):
    """Keeps how many looks ran at once at most; the first `meet` wait for each other, and a later one is faster than the one before.

    Raises `error` at looks of the frames `at`, or at calls with these numbers.
    """
    def __init__(self, error=None, at=(), meet=1):
        super().__init__()
        self.error, self.at, self.running, self.most = error, at, 0, 0
        self.meeting, self.meet, self.lock = threading.Barrier(meet), meet, threading.Lock()

    def __call__(self, frames, patches, every_layer=True):
        with self.lock:
            number, self.running = len(self.frames), self.running + 1
            self.most = max(self.most, self.running)
            out = super().__call__(frames, patches)
        if number < self.meet: self.meeting.wait(60)
        time.sleep(.04 - .02 * (number % 2))
        with self.lock: self.running -= 1
        if any(number == a if isinstance(a, int) else torch.equal(frames, a) for a in self.at): raise self.error
        return out


@pytest.mark.parametrize('n', [1, 2, 3])
def test_looks_side_by_side_come_in_order(source, n):
    model, threads = Slow(meet=n), torch.get_num_threads()
    steps = list(abreast(model, n).stream(source))
    alone = list(Segmenter(Fake()).stream(source))
    assert [s.time for s in steps] == [s.time for s in alone] and model.most == n
    for a, b in zip(steps, alone): assert torch.equal(a.maps, b.maps) and torch.equal(a.frame, b.frame)
    assert torch.get_num_threads() == threads


def test_looks_side_by_side_give_the_same_bytes(source):
    model = VCT.from_pretrained('scenes-tiny')
    alone, several = ([s.maps for s in abreast(model, n, size=64).stream(source)] for n in (1, 3))
    assert len(alone) == 10 and all(map(torch.equal, alone, several))


def test_a_live_input_and_frames_between_looks_wait_for_one_look(source):
    model = Slow()
    list(abreast(model, 3).stream(source, 5, hold='last'))
    with Live(None) as live:
        for n in range(3): live.frame(n / 10, torch.zeros(3, 48, 64, dtype=torch.uint8))
        live.close()
        list(abreast(model, 3).stream(live))
    assert len(model.frames) == 5 + 3 and model.most == 1


def test_steps_before_an_error_are_given(source):
    "Of the looks side by side one fails; those before it are there, and the error comes in its place."
    list(Segmenter(seeing := Fake()).stream(source))
    model, got = Slow(ValueError('a broken model'), at=seeing.frames[4:5], meet=3), []
    with pytest.raises(ValueError, match='a broken model'):
        for step in abreast(model, 3).stream(source): got.append(step.time)
    assert got == pytest.approx([0, .1, .2, .3])
    def broken(image, name):
        if name == '000004': raise OSError('no region map')
        return image
    regions, got = VCT(replace(PRESETS['scenes-tiny'], regions=True)).eval(), []
    with pytest.raises(OSError, match='no region map'):
        for step in abreast(regions, 3, size=64, regions=broken).stream(source): got.append(step.time)
    assert got == pytest.approx([0, .1, .2, .3])


@pytest.mark.parametrize('how', ['left', 'interrupted'])
def test_looks_side_by_side_end_with_their_film(source, how):
    "Whoever leaves early, or is interrupted, leaves no thread behind that looks on."
    model, before = Slow(KeyboardInterrupt(), at=(4,) if how == 'interrupted' else (), meet=3), threading.active_count()
    steps = abreast(model, 3).stream(source)
    if how == 'left':
        next(steps)
        steps.close()
    else:
        with pytest.raises(KeyboardInterrupt): list(steps)
    assert threading.active_count() == before and model.running == 0
    looked = len(model.frames)
    time.sleep(.1)
    assert len(model.frames) == looked < 10


def test_makers_of_region_maps_are_asked_in_order_and_alone(source):
    asked = []
    def maker(image, name):
        asked.append((name, threading.get_ident()))
        return image
    model = VCT(replace(PRESETS['scenes-tiny'], regions=True)).eval()
    steps = list(abreast(model, 3, size=64, regions=maker).stream(source))
    assert [name for name, _ in asked] == [f'{n:06}' for n in range(10)] and len({thread for _, thread in asked}) == 1
    assert len(steps) == 10


def test_memory_for_one_look_but_not_for_three(source):
    "Where it runs out with looks side by side, they are taken one after the other from then on."
    model = Slow(MemoryError(), at=(3, 4), meet=3)
    looking = abreast(model, 3)
    steps = list(looking.stream(source))
    assert [s.time for s in steps] == [s.time for s in Segmenter(Fake()).stream(source)] and looking.abreast == 1
    with pytest.raises(MemoryError, match='does not hold one frame'):
        list(abreast(Slow(MemoryError(), at=range(3, 99), meet=3), 3).stream(source))


def test_a_still_picture_is_seen_once_by_looks_side_by_side(tmp_path):
    model, seen = VCT.from_pretrained('scenes-tiny'), []
    model.pyramid.register_forward_hook(lambda m, given, made: seen.append(len(given[0])))
    still = save(tmp_path/'still.mkv', [k / 10 for k in range(6)], np.full((6, 48, 64, 3), 90, np.uint8),
                 .3 * np.sin(np.arange(48000) ** 1.2)[None], 48000, **EXACT)
    steps = list(abreast(model, 3, size=64).stream(still))
    assert seen == [1] and len(steps) == 6 and not torch.equal(steps[0].maps, steps[5].maps)


@pytest.mark.parametrize('offset, hears', [(-.4865, True), (-.47, True), (0, True), (.47, True), (.4865, True), (.489, False), (-.489, False)])
def test_window_of_a_step(offset, hears):
    sound = torch.zeros(5 * RATE)
    at = round((2 + offset) * RATE)
    sound[at - 8:at + 8] = .9
    assert bool((heard(sound, 2.) > math.log(.01) + 1e-3).any()) == hears
    assert SPAN / RATE == .975


def test_hearing_costs_the_same_anywhere_in_a_film():
    sound = torch.zeros(RATE * 3600)
    began = time.perf_counter()
    for t in range(0, 3600, 60): heard(sound, t)
    assert time.perf_counter() - began < 5      # with the whole sound each time: minutes


def test_nothing_to_hear_outside_of_the_sound():
    sound = torch.ones(100)
    for t in (-5., 5., 1e5): assert (heard(sound, t) - math.log(.01)).abs().max() < 1e-6
    assert heard(torch.zeros(0), 1.).shape == (1, 96, 64)


TIMES = {'even': [i / 10 for i in range(10)], 'uneven': [0, .1, .13, .4, .45, .9], 'milliseconds': [round(i / 30, 3) for i in range(30)]}

@pytest.mark.parametrize('fps', [.5, 1, 3, 5, 10, 30, 1000])
@pytest.mark.parametrize('kind', TIMES)
def test_looks_at_the_first_frame_at_or_after_each_due_time(tmp_path, kind, fps):
    source = clip(tmp_path/'a.mkv', TIMES[kind], **FLAC)
    shown = [f.time for f in read_frames(source)]
    due = [k / fps for k in range(math.ceil((shown[-1] + .001) * fps) + 1)]
    wanted = sorted({next(t for t in shown if t > d - .001) for d in due if d < shown[-1] + .001})
    assert [s.time for s in Segmenter(Fake()).stream(source, fps)] == wanted
    if kind == 'milliseconds' and fps == 30: assert len(wanted) == 30


def test_held_steps_have_their_own_frames_and_the_last_masks(source):
    model = Fake()
    held = list(Segmenter(model).stream(source, fps=2, hold='last'))
    frames = list(read_frames(source))
    assert len(model.frames) == 2 and [s.time for s in held] == [f.time for f in frames]
    assert all(torch.equal(s.frame, f.image) for s, f in zip(held, frames))
    assert all(s.labels is held[5 * (i // 5)].labels for i, s in enumerate(held))


def test_faded_steps_lie_between_the_looks(source):
    "Maps by hand, labels read from them, frames of their own; after the last look its masks are held."
    faded, looks = (list(Segmenter(Fake()).stream(source, fps=2.5, hold=hold)) for hold in ('linear', None))
    assert [s.time for s in faded] == [f.time for f in read_frames(source)] and len(looks) == 3
    for n, s in enumerate(faded):
        a, b = looks[n // 4], looks[min(n // 4 + 1, 2)]
        maps = (1 - n % 4 / 4) * a.maps + n % 4 / 4 * b.maps
        assert torch.allclose(s.maps, maps, atol=1e-5)
        labels, objects = read_maps(s.maps[None], s.frame.shape[1:], Fake.config.classes)
        assert torch.equal(s.labels, labels) and s.objects == objects
    assert any(not torch.equal(s.labels, looks[n // 4].labels) for n, s in enumerate(faded))


def test_fading_that_takes_too_much_memory_is_refused_before_work(source):
    with pytest.raises(ValueError, match=r"GiB .* let fps be .* or more, or hold be 'last'\."):
        next(Segmenter(Fake()).stream(source, 1e-5, hold='linear'))
    with pytest.raises(ValueError, match="hold is 'cubic'"): next(Segmenter(Fake()).stream(source, hold='cubic'))


@pytest.mark.parametrize('hold', [None, 'last', 'linear'])
@pytest.mark.parametrize('fps', [None, 5])
def test_batches_give_what_single_looks_give(source, fps, hold, monkeypatch):
    single = list(Segmenter(Fake()).stream(source, fps, hold=hold))
    for batch, sizes in ((2, None), (3, [3, 3, 3, 1] if fps is None else [3, 2]), (100, [10] if fps is None else [5])):
        model = Fake()
        together = list(Segmenter(model, batch=batch).stream(source, fps, hold=hold))
        assert sizes is None or [len(f) for f in model.frames] == sizes
        assert [s.time for s in together] == [s.time for s in single]
        for a, b in zip(together, single): assert torch.equal(a.labels, b.labels) and torch.equal(a.frame, b.frame) and a.objects == b.objects
    model = Fake()
    monkeypatch.setattr(segmenter, 'PENDING', 2 * 3 * 64 * 48)      # the third frame that waits is too much
    list(Segmenter(model, batch=100).stream(source, fps, hold=hold))
    assert max(len(f) for f in model.frames) == (3 if fps is None or hold is None else 2)


class Cramped(Fake):
    "Has room for so many frames."
    def __init__(self, room, error):
        super().__init__()
        self.room, self.error = room, error
    def __call__(self, frames, patches, every_layer=True):
        if len(frames) > self.room: raise self.error
        return super().__call__(frames, patches)


@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory.'), MemoryError(), RuntimeError('DefaultCPUAllocator: not enough memory')], ids=repr)
def test_out_of_memory_halves_the_batch_and_goes_on(source, error):
    single, model = list(Segmenter(Fake()).stream(source)), Cramped(2, error)
    for a, b in zip(Segmenter(model, batch=8).stream(source), single, strict=True): assert torch.equal(a.labels, b.labels) and a.time == b.time
    assert [len(f) for f in model.frames] == [2, 2, 2, 2, 2]
    with pytest.raises(MemoryError, match=r'does not hold one frame of 64 × 64 pixels; choose a smaller --size'):
        list(Segmenter(Cramped(0, error), batch=8).stream(source))


def test_other_errors_are_not_taken_for_lack_of_memory(source):
    with pytest.raises(RuntimeError, match='no'): list(Segmenter(Cramped(0, RuntimeError('no')), batch=8).stream(source))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_batch_fits_the_gpu(source):
    "As many looks as half of what is free would hold; a batch that is too large is halved for real."
    segmenter = Segmenter(VCT.from_pretrained('scenes-tiny'), device='cuda')
    assert 1 < segmenter.batch <= 32
    assert len(list(segmenter.stream(source))) == 10
    torch.cuda.set_per_process_memory_fraction(.01)
    try:
        segmenter.batch = 4096
        maps = segmenter.predict(torch.zeros(4096, 3, 224, 224, device='cuda'), torch.zeros(4096, 96, 64, device='cuda'))
        assert len(maps) == 4096 and segmenter.batch < 4096
    finally: torch.cuda.set_per_process_memory_fraction(1.)


@pytest.mark.parametrize('fps', [None, 2, 3, 7.5])
@pytest.mark.parametrize('kind', TIMES)
def test_parts_are_those_of_the_whole(tmp_path, kind, fps):
    "Wherever a film is cut, at frames or between them, each part has the looks and the held masks of the whole."
    source = clip(tmp_path/'a.mkv', TIMES[kind], **EXACT)
    for hold in (None, 'last', 'linear'):
        whole = list(Segmenter(Fake()).stream(source, fps, hold=hold))
        rng = np.random.default_rng(3)
        for cuts in ([.1, .4], [.45], sorted(rng.uniform(0, 1, 3)), [TIMES[kind][3]]):
            parts = []
            for a, b in zip([0., *cuts], [*cuts, math.inf]):
                if any(a <= s.time < b for s in whole): parts += Segmenter(Fake()).stream(source, fps, hold=hold, start=a, end=b)
            assert [s.time for s in parts] == [s.time for s in whole]
            for a, b in zip(parts, whole):
                assert torch.equal(a.maps, b.maps) and torch.equal(a.labels, b.labels) and torch.equal(a.frame, b.frame) and a.objects == b.objects


def test_a_part_costs_no_look_outside_of_it(tmp_path):
    "One look before, where the first frame holds its masks, and none where the part begins with a look."
    source = clip(tmp_path/'a.mkv', [i / 20 for i in range(40)], **EXACT)
    for start, looks in ((1.1, 2), (1., 2), (1.6, 1)):
        model = Fake()
        steps = list(Segmenter(model).stream(source, 2, hold='last', start=start))
        assert len(model.frames) == looks and steps[0].time == pytest.approx(start, abs=.01)
        assert not torch.equal(steps[0].frame, steps[1].frame)


def test_nonsense_parts_are_said(source):
    for start, end in ((-1, 5), (2, 2), (3, 1), (math.nan, 1), (0, math.nan)):
        with pytest.raises(ValueError, match='0 ≤ start < end'): next(Segmenter(Fake()).stream(source, start=start, end=end))
    with pytest.raises(MediaError, match='shows no frame from 60 s to inf s'): next(Segmenter(Fake()).stream(source, start=60))


def test_tracks(tmp_path):
    "The track of sound, and of pictures, that is asked for; a sentence where there are fewer."
    times = [i / 10 for i in range(10)]
    waves = [.3 * np.sin(2 * np.pi * f / 16000 * np.arange(16000))[None] for f in (200, 3000)]
    colors = [np.full((48, 64, 3), c, np.uint8) for c in ((250, 0, 0), (0, 0, 250))]
    with av.open(str(tmp_path/'a.mkv'), 'w') as out:
        packets = [*film(out, times, colors[:1] * 10, 'ffv1', 'bgr0'), *film(out, times, colors[1:] * 10, 'ffv1', 'bgr0'),
                   *sing(out, waves[0], 16000, 'flac'), *sing(out, waves[1], 16000, 'flac')]
        out.mux(packets)
    for track in (0, 1):
        model = Fake()
        first = next(Segmenter(model).stream(tmp_path/'a.mkv', track=track, view=1 - track))
        assert first.frame[:, 0, 0].tolist() == colors[1 - track][0, 0].tolist()
        own, other = (patches_at(torch.from_numpy(waves[i][0]), 16000, [0.]) for i in (track, 1 - track))
        assert (model.patches[0] - own).abs().mean() < .01 < .1 < (model.patches[0] - other).abs().mean()
    for options in (dict(track=2), dict(view=2), dict(track=-1)):
        with pytest.raises(MediaError, match='has 2 tracks of .*, numbered from 0, and none with number'):
            next(Segmenter(Fake()).stream(tmp_path/'a.mkv', **options))


def test_errors_of_the_thread_reach_the_caller(source):
    "What the decoding thread meets is raised where the steps are taken, and no thread is left behind."
    class Deaf(Fake):
        def __call__(self, *args, **kw): raise RuntimeError('no')
    before = threading.active_count()
    with pytest.raises(RuntimeError, match='no'): list(Segmenter(Deaf()).stream(source))
    stream = Segmenter(Fake()).stream(source)
    next(stream); stream.close()
    assert threading.active_count() == before


LONG = """
import re, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_segmenter import Fake
from ppqg_nb.segmenter import Segmenter
torch.set_num_threads(1)
class Forgets(Fake):
    def __call__(self, *args, **kw):
        self.__init__()
        return super().__call__(*args, **kw)
print(sum(1 for _ in Segmenter(Forgets()).stream(sys.argv[1])), re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='the peak of memory is read from /proc')
def test_a_long_film_needs_no_more_memory(tmp_path):
    "Half an hour within a tenth of the peak of half a minute."
    peaks = []
    for seconds in (30, 1800):
        times = np.arange(seconds) / 1.
        images = [np.full((48, 64, 3), i % 250, np.uint8) for i in range(seconds)]
        wave = np.random.default_rng(0).uniform(-.1, .1, (1, 8000 * seconds)).astype(np.float32)
        path = save(tmp_path/f'{seconds}.mkv', times, images, wave, 8000, codecs=('libx264', 'pcm_s16le'), preset='ultrafast')
        done = subprocess.run([sys.executable, '-c', LONG, str(path), str(Path(__file__).parent)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        looks, peak = map(int, done.stdout.split())
        assert looks == seconds
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0], peaks


def test_reads_as_it_goes(source):
    model = Fake()
    stream = Segmenter(model).stream(source)
    next(stream), next(stream)
    assert len(model.frames) == 2


@pytest.mark.parametrize('fps, hold', [(None, None), (5, None), (5, 'last'), (2, 'last')])
def test_live_frames_hear_what_was_before_them(fps, hold):
    "Looks on the grid; each hears the 0.975 s that end at its frame, whatever the batch of the segmenter."
    times, model = [n / 10 for n in range(20)], Fake()
    sound = .3 * torch.randn(3 * RATE)
    with Live(RATE) as live:
        def push():
            live.sound(sound)
            live.sound(None)
            for n, t in enumerate(times): live.frame(t, torch.full((3, 48, 64), 10 * n, dtype=torch.uint8))
            live.close()
        thread = threading.Thread(target=push)
        thread.start()
        steps = list(Segmenter(model, batch=8).stream(live, fps, hold=hold))
        thread.join()
    looks = times[::round(10 / fps)] if fps else times
    assert [s.time for s in steps] == (times if hold else looks) and [len(f) for f in model.frames] == [1] * len(looks)
    assert [s.frame[0, 0, 0].item() for s in steps] == [round(100 * s.time) for s in steps]
    for t, mel in zip(looks, model.patches): assert torch.equal(mel, patches_at(sound, RATE, [t - SPAN / RATE / 2]))


def test_live_input_can_be_left_and_ends_in_time():
    with Live(None, keep='newest') as live:
        for n in range(3): live.frame(n, torch.zeros(3, 48, 64, dtype=torch.uint8))
        step = next(Segmenter(Fake()).stream(live))
        assert step.time == 2 and not step.objects
    with Live() as live:
        for n in range(5): live.frame(n, torch.zeros(3, 48, 64, dtype=torch.uint8))
        assert [s.time for s in Segmenter(Fake()).stream(live, start=1, end=3)] == [1, 2]


@pytest.mark.parametrize('wrong', [dict(fps=0), dict(fps=math.nan), dict(fps=math.inf), dict(start=3, end=1), dict(hold='cubic'), dict(fps=1, hold='linear')], ids=str)
def test_nonsense_of_a_live_input_is_said(wrong):
    with Live() as live, pytest.raises(ValueError, match='must be|let it be'): next(Segmenter(Fake()).stream(live, **wrong))


def test_open_files_and_pipes(source, tmp_path, monkeypatch):
    whole = [s.maps for s in Segmenter(Fake()).stream(source)]
    monkeypatch.setenv('TMPDIR', str(tmp_path/'private'))
    monkeypatch.setattr('tempfile.tempdir', None)
    (tmp_path/'private').mkdir()
    with open(source, 'rb') as file:
        for a, b in zip(Segmenter(Fake()).stream(file), whole, strict=True): assert torch.equal(a.maps, b)
    with open(source, 'rb') as file:
        stream = Segmenter(Fake()).stream(file)
        next(stream)
        (copy,) = (tmp_path/'private').iterdir()
        assert copy.stat().st_mode & 0o777 == 0o600
        stream.close()
    assert not list((tmp_path/'private').iterdir())


def test_silent(source, tmp_path):
    mute = clip(tmp_path/'mute.mp4', sound=False)
    with pytest.raises(MediaError, match='--silent'): next(Segmenter(Fake()).stream(mute))
    for path in (mute, source): assert not any(s.objects for s in Segmenter(Fake()).stream(path, silent=True))
    assert any(s.objects for s in Segmenter(Fake()).stream(source))


@pytest.mark.parametrize('fps', [0, -1, math.nan, math.inf])
def test_wrong_fps(source, fps):
    with pytest.raises(ValueError, match='above 0'): next(Segmenter(Fake()).stream(source, fps))


@pytest.mark.parametrize('size', [(40, 30), (64, 48), (48, 96), (33, 35), (320, 180)], ids=str)
def test_any_shape_is_scaled_to_a_square_and_back(tmp_path, size):
    source, model = clip(tmp_path/'a.mkv', size=size, **EXACT), Fake()
    for step in Segmenter(model, 128).stream(source):
        assert step.labels.shape == step.frame.shape[1:] == size[::-1] and step.maps.shape == (2, 128, 128)
        true = (step.frame[0] > 150)
        assert ((step.labels == 1) & true).sum() / ((step.labels == 1) | true).sum() > .7
        (o,), (y, x) = step.objects, true.nonzero(as_tuple=True)
        for a, b in zip(o.box, (x.min(), y.min(), x.max() + 1, y.max() + 1)): assert abs(a - b.item()) <= 2
    assert {f.shape for f in model.frames} == {(1, 3, 128, 128)}
    assert all(0 <= f.min() and f.max() <= 1 for f in model.frames)


def test_objects():
    maps = torch.zeros(1, 4, 8, 8)
    maps[0, 0], maps[0, 3, 2:5, 1:3], maps[0, 2, 6, 6] = .5, .9, .7
    labels, objects = read_maps(maps, (8, 8), ('background', 'a', 'b', 'c'))
    assert objects[0] == Object('c', 3, pytest.approx(.9), 6 / 64, (1, 2, 3, 5))
    assert objects[1] == Object('b', 2, pytest.approx(.7), 1 / 64, (6, 6, 7, 7))
    assert labels.dtype == torch.uint8 and len(objects) == 2


@pytest.mark.parametrize('size', [(9, 12), (36, 48), (31, 77), (5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize('classes', [2, 71])
def test_maps_are_read_exactly(size, classes):
    "Not only by the classes that win on a pixel of the model."
    for _ in range(10):
        maps = torch.randn(1, classes, 9, 12)
        labels, objects = read_maps(maps, size, [str(k) for k in range(classes)])
        wanted = label_map(upsample(maps, size))[0]
        assert torch.equal(labels.long(), wanted)
        assert {o.index for o in objects} == set(wanted.unique().tolist()) - {0}
        assert abs(sum(o.area for o in objects) - (wanted > 0).float().mean()) < 1e-5


def test_few_contenders_where_regions_are_wide():
    maps = torch.rand(1, 71, 64, 64) * .1
    maps[:, 0] = .5
    maps[:, 9, 10:30, 10:30] = .9
    assert contenders(maps).tolist() == [0, 9]


@pytest.mark.parametrize('config, size, words', [
    (Fake.config, 31, 'at least 32'), (Config(classes=[str(i) for i in range(257)]), None, '256'),
    (Config(classes=('a', 'b'), regions=True), None, r'reads a region map.*--regions classic.*regions=ClassicRegions\(\)')],
    ids=['small', 'classes', 'regions'])
def test_models_that_cannot_be_used(config, size, words):
    model = Fake()
    model.config = config
    with pytest.raises(ValueError, match=words): Segmenter(model, size)


def test_maker_for_a_model_that_reads_no_region_maps():
    with pytest.raises(ValueError, match='does not read region maps; leave out --regions'): Segmenter(Fake(), regions=ClassicRegions())


class Reader(Fake):
    "A `Fake` that also keeps the region maps it was given."
    config = replace(Fake.config, regions=True)

    def __init__(self):
        super().__init__()
        self.regions = []
    def __call__(self, frames, patches, regions, every_layer=True):
        self.regions.append(regions)
        return super().__call__(frames, patches)


class Maker:
    "Paints a frame's number into its blue, and keeps what it was asked."
    def __init__(self): self.images, self.names = [], []
    def __call__(self, image, name):
        self.images.append(image)
        self.names.append(name)
        return torch.stack([image[0], image[1], torch.full_like(image[2], int(name))])


@pytest.mark.parametrize('fps, looks', [(None, range(10)), (5, range(0, 10, 2)), (1, [0])])
@pytest.mark.parametrize('hold', [None, 'last', 'linear'])
def test_one_map_for_each_look(source, fps, looks, hold):
    model, maker = Reader(), Maker()
    list(Segmenter(model, regions=maker).stream(source, fps, hold=hold))
    frames = list(read_frames(source))
    assert maker.names == [f'{n:06}' for n in looks] and len(model.regions) == len(maker.names)
    assert all(torch.equal(image, frames[n].image) for image, n in zip(maker.images, looks))
    assert [r[0, 2].unique().tolist() for r in model.regions] == [[n] for n in looks]


def test_maps_are_named_like_the_label_maps(source, tmp_path):
    model, maker = Reader(), Maker()
    segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'maps'), Segmenter(model, regions=maker), source)
    assert maker.names == sorted(p.stem for p in (tmp_path/'maps').iterdir())


@pytest.mark.parametrize('size', [(40, 30), (64, 48), (33, 350), (130, 240)], ids=str)
@pytest.mark.parametrize('side', [32, 64, 128])
def test_a_map_is_resized_by_the_nearest_pixel(size, side):
    "As Pillow does it: no colour is new."
    image, model = torch.randint(256, (3, *size), dtype=torch.uint8), Reader()
    Segmenter(model, side, regions=lambda image, name: image).step(0., image, torch.zeros(1, 96, 64))
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
    assert model.regions[0].dtype == torch.uint8 and np.array_equal(model.regions[0][0].permute(1, 2, 0).numpy(), np.array(wanted))


def test_a_map_that_does_not_fit_is_refused(source):
    maker = lambda image, name: image[:, :-1]
    with pytest.raises(ValueError, match=r'The region map of frame 000000 has shape \(3, 47, 64\)'):
        next(Segmenter(Reader(), regions=maker).stream(source))


RELEASED_LIKE = replace(
    PRESETS['released-avss-swin-base-384'], image_size=64, hidden=32, num_queries=8, audio_hidden=(32,), pixel_mlp=(16, 16), pixel_layers=1,
    pixel_ffn=32, layers=4, heads=4, ffn=32, vggish_width=.25, backbone='convnext_atto')

@pytest.mark.parametrize('kind', ['classic', 'folder'])
def test_a_model_that_reads_region_maps(source, tmp_path, kind):
    "Equal to the model called by hand, and not to what it makes of an empty map."
    model, maker = VCT(RELEASED_LIKE), ClassicRegions()
    frames = list(read_frames(source))
    if kind == 'folder':
        for n, f in enumerate(frames):
            picture = region_map((f.image[0] > torch.tensor([150, 80, n])[:, None, None]))
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path/f'{n:06}.png')
        maker = make_regions(tmp_path)
    steps = list(Segmenter(model, regions=maker).stream(source, fps=5))
    assert len(steps) == 5
    small = lambda x, **kw: F.interpolate(x[None].float(), (64, 64), **kw)
    for n, s in zip(range(0, 10, 2), steps):
        assert s.time == frames[n].time and s.maps.shape == (71, 64, 64)
        image = small(frames[n].image / 255, mode='bilinear', antialias=True).clamp(0, 1)
        patch = heard(resample(*read_sound(source)), s.time)
        regions = maker(frames[n].image, f'{n:06}')
        with torch.no_grad(): made = [model.compose(model(image, patch, small(x, mode='nearest-exact').to(torch.uint8)))[0]
                                      for x in (regions, region_map(torch.zeros(0, 48, 64, dtype=torch.bool)))]
        assert (made[0] - s.maps).abs().max() < 1e-5 < (made[1] - s.maps).abs().max()


def test_a_map_that_is_missing_leaves_nothing(source, tmp_path):
    (tmp_path/'maps').mkdir()
    with Image.new('RGB', (64, 48)) as picture:
        for n in range(4): picture.save(tmp_path/'maps'/f'{n:06}.png')
    before = tree(tmp_path)
    with pytest.raises(FileNotFoundError, match='no 000004.png'):
        segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'labels'), Segmenter(Reader(), regions=FolderRegions(tmp_path/'maps')), source)
    assert tree(tmp_path) == before


def shape_step(background, size=(120, 160), k=6, box=(60, 40, 100, 80), name='bell'):
    labels = torch.zeros(size, dtype=torch.uint8)
    labels[box[1]:box[3], box[0]:box[2]] = k
    frame = torch.as_tensor(background, dtype=torch.uint8).view(-1, 1, 1).expand(3, *size).clone()
    return Step(0., frame, torch.zeros(71, 1, 1), labels, (Object(name, k, 1., (labels > 0).float().mean().item(), box),))


@pytest.mark.parametrize('k', [1, 6, 7, 15, 70])
@pytest.mark.parametrize('background', [0, 64, 128, 200, 255])
def test_an_outline_can_be_seen(background, k):
    "Across the border of an object there is a step of at least 60 in some channel, whatever is below."
    image = overlay(shape_step(background, k=k)).int()
    row = image[:, 60, 50:110]
    assert (row[:, 1:] - row[:, :-1]).abs().amax(0).max() >= 60


def test_what_is_not_marked_is_not_touched():
    step = shape_step(90, box=(60, 60, 100, 100))
    same = (overlay(step) == step.frame).all(0)
    assert same[:40].all() and same[:, :55].all() and same[:, 105:].all() and not same[65:95, 65:95].any()


@pytest.mark.parametrize('box', [(0, 0, 20, 20), (140, 0, 160, 20), (140, 100, 160, 120), (0, 100, 20, 120), (150, 50, 160, 90)], ids=str)
@pytest.mark.parametrize('note', [None, 'a note'])
def test_names_stay_inside(box, note):
    "The chip of a name is as wide as in the middle of the frame, and not covered by the note's bar."
    teal = lambda step: (overlay(step, note).permute(1, 2, 0) == torch.from_numpy(class_colors(7)[6])).all(-1).sum().item()
    names = teal(shape_step(0)), teal(shape_step(0, box=box))
    assert names[0] > 50 and abs(names[0] - names[1]) < 12


def test_chips_do_not_cover_each_other():
    taken = []
    for box in [(10, 10, 50, 50), (12, 12, 40, 40), (14, 11, 30, 30), (60, 10, 90, 40)]:
        x, y = place(box, (40, 14), (200, 200), taken)
        assert all(x >= c[2] or x + 40 <= c[0] or y >= c[3] or y + 14 <= c[1] for c in taken)
        taken.append((x, y, x + 40, y + 14))
    assert place((0, 0, 5, 5), (300, 300), (200, 200), []) == (0, 0)


def test_every_region_is_found():
    labels = torch.zeros(1080, 1920, dtype=torch.uint8)
    labels[100:400, 100:500], labels[600:900, 1000:1500], labels[0:4, 0:4] = 6, 6, 7
    found = regions(labels)
    assert [k for k, _ in found] == [6, 6]
    for a, b in zip(found[0][1] + found[1][1], (1000, 600, 1500, 900, 100, 100, 500, 400)): assert abs(a - b) < 5


@pytest.mark.parametrize('size', [(30, 40), (96, 48), (720, 1280)], ids=str)
def test_note(size):
    step = shape_step(255, size, box=(0, 0, 10, 10))
    image = overlay(step, 'RANDOM WEIGHTS: the marks mean nothing')
    red = (image.permute(1, 2, 0) == torch.tensor([176, 0, 32])).all(-1)
    assert red[-1].all() and red[-1, 0] and not red[:size[0] // 2].any()
    assert (image[1, red.any(1)] > 80).any()                    # letters on it
    wide = font(12).getlength('RANDOM WEIGHTS: the marks mean nothing')
    if wide < size[1]: assert red[red.any(1)][:, :2].all() and red[red.any(1)][:, -2:].all()


def test_ink():
    assert ink((255, 255, 255)) == ink((255, 255, 0)) == ink((128, 128, 128)) == 'black'
    assert ink((0, 0, 0)) == ink((0, 0, 255)) == ink((128, 0, 0)) == 'white'


def test_label_maps_hold_classes_and_colors(tmp_path):
    labels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    save_labels(tmp_path/'a.png', labels)
    with Image.open(tmp_path/'a.png') as picture:
        assert picture.mode == 'P' and np.array_equal(np.array(picture), labels.numpy())
        assert np.array_equal(np.array(picture.convert('RGB')).reshape(-1, 3), class_colors(256))


def tree(folder): return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob('*')}


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_folder_is_whole_or_as_before(tmp_path, error):
    for exists in (False, True):
        if exists:
            (tmp_path/'maps').mkdir()
            for name in ('000000.png', '000009.png', 'notes.txt', '12.png'): (tmp_path/'maps'/name).write_text('old')
        before = tree(tmp_path)
        with pytest.raises(error), folder_beside(tmp_path/'maps') as part:
            (part/'000000.png').write_text('new')
            raise error
        assert tree(tmp_path) == before
    with folder_beside(tmp_path/'maps') as part: (part/'000000.png').write_text('new')
    found = {p.name: p.read_text() for p in (tmp_path/'maps').iterdir()}
    assert found == {'000000.png': 'new', 'notes.txt': 'old', '12.png': 'old'}
    assert [p.name for p in tmp_path.iterdir()] == ['maps']


@pytest.mark.skipif(sys.platform == 'win32', reason='permissions of POSIX')
def test_new_folder_can_be_read_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'other').mkdir()
    with folder_beside('maps'): pass
    assert (tmp_path/'maps').stat().st_mode == (tmp_path/'other').stat().st_mode


def test_overlay_and_label_maps_of_a_film(source, tmp_path):
    seen = []
    n = segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'maps'), Segmenter(Fake()), source, fps=5, seen=seen.append)
    assert n == len(seen) == 10 and sorted(p.name for p in (tmp_path/'maps').iterdir()) == [f'{i:06}.png' for i in range(10)]
    assert [f.time for f in read_frames(tmp_path/'o.mp4')] == pytest.approx([f.time for f in read_frames(source)], abs=1e-3)
    assert torch.equal(read_sound(tmp_path/'o.mp4')[0], read_sound(source)[0])
    for i, step in enumerate(seen):
        with Image.open(tmp_path/'maps'/f'{i:06}.png') as picture: assert np.array_equal(np.array(picture), step.labels.numpy())
    shown = torch.stack([f.image.float() for f in read_frames(tmp_path/'o.mp4')])
    assert (shown - torch.stack([overlay(s).float() for s in seen])).abs().mean() < 4


@pytest.mark.parametrize('size', [(40, 30), (48, 96), (33, 35)], ids=str)
def test_shapes_of_files(tmp_path, size):
    source = clip(tmp_path/'a.mkv', size=size, **EXACT)
    segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'maps'), Segmenter(Fake()), source, note='a note that is longer than the frame is wide')
    m = probe(tmp_path/'o.mp4')
    assert (m.width, m.height) == tuple(n + n % 2 for n in size)
    with Image.open(tmp_path/'maps'/'000003.png') as picture: assert picture.size == size


def test_two_runs_are_equal(tmp_path):
    for name in 'ab':
        segment_into(dict(overlay=tmp_path/f'{name}.mp4', labels=tmp_path/name), Segmenter(Fake()), example_path(), fps=8)
    assert (tmp_path/'a.mp4').read_bytes() == (tmp_path/'b.mp4').read_bytes()
    assert tree(tmp_path/'a') == tree(tmp_path/'b') and len(tree(tmp_path/'a')) == 125


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('old', [False, True], ids=['new', 'replaced'])
@pytest.mark.parametrize('count', [1, 5, 10])
def test_interrupted_half_way_leaves_all_as_it_was(source, tmp_path, error, old, count):
    if old:
        (tmp_path/'o.mp4').write_bytes(b'old')
        (tmp_path/'maps').mkdir()
        (tmp_path/'maps'/'000000.png').write_bytes(b'old')
    before, steps = tree(tmp_path), []
    def seen(step):
        steps.append(step)
        if len(steps) == count: raise error
    with pytest.raises(error): segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'maps'), Segmenter(Fake()), source, seen=seen)
    assert tree(tmp_path) == before


def test_files_that_are_no_videos_leave_nothing(tmp_path):
    (tmp_path/'text.mp4').write_text('not a video')
    before = tree(tmp_path)
    for name in ('text.mp4', 'missing.mp4'):
        with pytest.raises(MediaError): segment_into(dict(overlay=tmp_path/'o.mp4', labels=tmp_path/'maps'), Segmenter(Fake()), tmp_path/name)
    assert tree(tmp_path) == before


def test_a_real_model(source):
    model = VCT.from_preset('scenes-tiny').train()
    segmenter = Segmenter(model, 96)
    a, b = next(segmenter.stream(source)), next(segmenter.stream(source))
    assert not model.training and a.maps.shape == (32, 96, 96) and torch.equal(a.maps, b.maps)
    assert not a.maps.requires_grad and all(re.fullmatch('[a-z-]+', o.name) for o in a.objects)
    image = F.interpolate(a.frame[None].float() / 255, (96, 96), mode='bilinear', antialias=True).clamp(0, 1)
    with torch.no_grad(): maps = model.compose(model(image, heard(resample(*read_sound(source)), a.time)))
    assert (maps[0] - a.maps).abs().max() < 1e-5
