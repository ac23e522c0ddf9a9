"Faults: the stored table is what the command does, and broken films end with a film or a sentence."
import struct, sys, warnings, zlib

import av
import numpy as np
import pytest
import torch
import typer
from clips import noise, save
from PIL import Image

from ppqg_nb import data, faults, regions
from ppqg_nb.cli import sentences
from ppqg_nb.faults import CODECS, FAULTS, GOOD, fuzzed, judged, main, outcomes, read_outcomes, whole_film, write_outcomes
from ppqg_nb.video import LONGEST, LOUDEST, MediaError, VideoWriter, beside, probe, read_frames, read_sound

LINUX = sys.platform == 'linux'
AGAIN = ['nothing wrong', 'empty', 'random bytes', '3/16 of an MP4', '9/16 of an MP4', '8/16 of an MKV', 'no samples in a track', 'output named .wav',
         'wrong extension', 'sound without picture', '1 frame', '1 × 1 pixel', 'times that go back', 'sound infinite', 'claims 10 hours, MKV',
         'a WAV of 4 GiB', 'sound of 2,000,000,011 Hz', 'unreadable', 'full disk', 'read-only file system', 'folder vanishes', 'SIGTERM',
         'SIGKILL', 'output is the input', 'a GPU that is not there']
FEW = [(kind, k, 1) for kind in CODECS for k in (0, 2)]


@pytest.fixture(scope='module')
def found():
    "Outcomes by name: some faults of the list, and some broken films."
    if not LINUX: pytest.skip('the limits of processes are those of Linux')
    rows = list(outcomes([*AGAIN, *FEW]))
    return {o.fault if o.group == 'list' else (o.group, int(o.fault.split()[1]), 1): o for o in rows}


# the table

@pytest.mark.parametrize('name', AGAIN)
def test_the_stored_table_is_what_happens(name, found):
    stored = {o.fault: o for o in read_outcomes() if o.group == 'list'}[name]
    if found[name].verdict == 'not possible here': pytest.skip(found[name].says)
    assert found[name][:5] == stored[:5]
    assert [p.split('/')[-1] for p in found[name].left.split()] == [p.split('/')[-1] for p in stored.left.split()]
    assert found[name].verdict in GOOD or name == 'SIGKILL'


def test_every_fault_is_stored_and_no_other():
    rows = read_outcomes()
    assert [o.fault for o in rows if o.group == 'list'] == list(FAULTS)
    broken = [o for o in rows if o.group != 'list']
    assert len(broken) >= 500 and {o.group for o in broken} == set(CODECS)
    kinds = {kind: sorted(int(o.fault.split()[1]) for o in broken if o.group == kind) for kind in CODECS}
    assert all(numbers == list(range(len(numbers))) for numbers in kinds.values())


@pytest.mark.parametrize('error', [MemoryError(), BlockingIOError(11, 'Resource temporarily unavailable'),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
                                   RuntimeError("can't start new thread")], ids=str)
def test_the_end_of_memory_is_said(error, capsys):
    with pytest.raises(typer.Exit), sentences(False): raise error
    assert capsys.readouterr().err.startswith('Error: There is not enough free memory')


def test_no_defect_is_stored():
    assert [o for o in read_outcomes() if o.verdict not in GOOD and o.fault != 'SIGKILL'] == []


def test_stored_memory_and_time_are_bounded():
    rows = read_outcomes()
    usual = next(o.memory for o in rows if o.fault == 'nothing wrong')
    assert all(o.memory < usual + FAULTS.get(o.fault, faults.Fault(None)).memory // 2**20 for o in rows)
    assert not [o for o in rows if o.verdict in ('endless', 'killed') and o.fault != 'SIGKILL']


@pytest.mark.parametrize('job', FEW, ids=str)
def test_broken_films_end_well(job, found):
    o = found[job]
    assert o.verdict in ('done', 'refused', 'noise') and o.memory < found['nothing wrong'].memory + 1024      # noise: see WAITS
    assert o.left == ('out.mp4' if o.code == 0 else '')


def test_outcomes_survive_the_file(tmp_path, found):
    write_outcomes(tmp_path / 'some.csv', found.values())
    assert read_outcomes(tmp_path / 'some.csv') == list(found.values())


def test_command_prints_counts_and_ends_with_a_code(tmp_path, monkeypatch, capsys):
    row = faults.Outcome('list', 'empty', 'refused', 1, 'Error: no.', '', 1)
    for verdict, code in (('refused', 0), ('noise', 1)):
        monkeypatch.setattr(faults, 'outcomes', lambda jobs, workers: [row._replace(verdict=verdict) for _ in jobs])
        with pytest.raises(SystemExit) as e: main(['--fuzz', '20', '--out', str(tmp_path / 'o.csv')])
        assert e.value.code == code and len(read_outcomes(tmp_path / 'o.csv')) == len(FAULTS) + 20
        assert capsys.readouterr().out.splitlines()[-1].split()[0] == 'all'


# the judge

@pytest.mark.parametrize('code, lines, left, late, counted, verdict', [
    (0, ['Error: what'], [], False, 8, 'half file'), (0, ['out.mp4: 8 frames of 2 × 2', 'x'], ['out.mp4'], False, 8, 'noise'),
    (1, [], [], False, None, 'noise'), (1, ['Error: a', 'Error: b'], [], False, None, 'noise'), (1, ['Error: a'], ['out.mp4'], False, 8, 'half file'),
    (0, ['out.mp4: 8 frames of 2 × 2'], ['out.mp4', '.out.x.part/out.mp4'], False, 8, 'half file'), (-11, [], [], False, None, 'killed'),
    (1, ['Error: KeyError: 3. This is a defect of ppqg_nb: run'], [], False, None, 'defect'), (70, [], [], False, None, 'defect'),
    (130, ['Interrupted.', 'Traceback (most recent call last):'], [], False, None, 'defect'), (-9, [], [], True, None, 'endless')])
def test_defects_have_names(code, lines, left, late, counted, verdict): assert judged(code, lines, left, late, counted) == verdict


# the fuzzer

@pytest.mark.parametrize('kind', CODECS)
def test_broken_films_are_their_own_and_come_again(kind):
    whole, many = whole_film(kind), [fuzzed(kind, k)[1] for k in range(60)]
    assert many == [fuzzed(kind, k)[1] for k in range(60)] and len({*many} - {whole}) > 57     # a splice may say what was there
    for k, broken in enumerate(many):
        if k % 3 == 0: assert len(broken) == len(whole) and sum(a != b for a, b in zip(broken, whole)) <= 200
        if k % 3 == 1: assert len(broken) < len(whole) and (whole.startswith(broken) or whole.endswith(broken[-20:]))


# pictures and sounds that claim too much

def bomb(path):
    "A PNG of some dozen bytes that claims 100,000 × 100,000 pixels."
    def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 100000, 100000, 8, 2, 0, 0, 0)) +
                     chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))
    return path


@pytest.mark.parametrize('read', [lambda p: regions.FolderRegions(p.parent)(torch.zeros(3, 48, 64, dtype=torch.uint8), p.stem),
                                  data.read_frame, lambda p: data.read_mask(p, 'binary')], ids=['region map', 'frame', 'mask'])
def test_a_picture_of_ten_billion_pixels_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match='pixels') as e: read(bomb(tmp_path / '000000.png'))
    assert '000000.png' in str(e.value) and '\n' not in str(e.value)


def test_a_wav_that_claims_four_gigabytes_is_refused(tmp_path):
    (tmp_path / 'a.wav').write_bytes(struct.pack('<4sI4s4sIHHIIHH4sI', b'RIFF', 2**32 - 1, b'WAVE', b'fmt ', 16, 1, 1, 16000, 32000, 2, 16, b'data',
                                                 2**32 - 1) + bytes(2000))
    with pytest.raises(ValueError, match='is cut off; copy it again'): data.read_wav(tmp_path / 'a.wav')


# what chapter 24 does not believe

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e38, -2 * LOUDEST])
@pytest.mark.parametrize('codec', ['pcm_f32le', 'pcm_f64le'])
def test_samples_that_are_no_number_are_silence(value, codec, tmp_path):
    wave = noise()
    wave[0, 1000:1010] = value
    source = save(tmp_path / 'a.mkv', fps=25, codecs=('libx264', codec), wave=wave)
    heard, _ = read_sound(source)
    assert not heard[1000:1010].any() and np.allclose(heard[2000:50000], wave[0, 2000:50000], atol=1e-6)
    with beside(tmp_path / 'copy.mp4') as part, VideoWriter(part, source) as writer:
        for frame in read_frames(source): writer.write(frame.time, frame.image)
    assert read_sound(tmp_path / 'copy.mp4')[0].isfinite().all()


def test_loud_samples_are_kept(tmp_path):
    wave = np.full((1, 44100), LOUDEST)
    assert (read_sound(save(tmp_path / 'a.mkv', fps=25, codecs=('libx264', 'pcm_f32le'), wave=wave))[0] == LOUDEST).all()


def test_frames_after_many_hours_are_left_out(tmp_path):
    times = np.array([0, .04, .08, LONGEST + 1, LONGEST + 1.04])
    source = save(tmp_path / 'a.mkv', times)
    assert [round(f.time, 2) for f in read_frames(source)] == [0, .04, .08]
    assert len([*read_frames(save(tmp_path / 'b.mkv', times.clip(max=3600) + [0, 0, 0, 0, .04]))]) == 5


@pytest.mark.parametrize('pause, kept', [(600, True), (4000, False)])
def test_long_pauses_of_the_sound(pause, kept, tmp_path):
    "Ten minutes of silence are silence; more than an hour is not believed."
    from clips import film, pictures, sing
    with av.open(str(tmp_path / 'a.mkv'), 'w') as out:
        packets = film(out, np.arange(5) / 25, pictures(np.arange(5) / 25), fps=25)
        for packet in sing(out, noise(8000), 8000, 'pcm_s16le'):
            if packet.pts is not None and packet.pts * packet.time_base > 1: packet.pts = packet.dts = packet.pts + round(pause / packet.time_base)
            packets.append(packet)
        out.mux(packets)
    heard, rate = read_sound(tmp_path / 'a.mkv')
    assert len(heard) / rate == pytest.approx(pause + 3 if kept else 1.1, abs=.2)
    if kept: assert not heard[2 * rate:599 * rate].any() and heard[-2 * rate:].abs().max() > .01


def test_a_frame_that_claims_too_much_is_refused_before_it_is_decoded(tmp_path):
    faults.FAULTS['claims 16,000 × 16,000 in a PNG'].make(tmp_path)
    with pytest.raises(MediaError, match='claims frames of 16000 × 16000 pixels; scale it down'): probe(tmp_path / 'in.avi')


def test_a_part_is_private_and_goes(tmp_path):
    with pytest.raises(KeyError), beside(tmp_path / 'a.txt') as part:
        part.write_text('half')
        assert part.parent.parent == tmp_path and part.parent.name.startswith('.a.')
        if LINUX: assert part.parent.stat().st_mode & 0o777 == 0o700
        raise KeyError
    assert list(tmp_path.iterdir()) == []
