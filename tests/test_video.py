"Files of many makes through ppqg_nb.video: one clock, upright, the right colours, and a copy that keeps them."
import subprocess
import threading
import warnings
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from clips import SECONDS, film, irregular, noise, pictures, save, sing
from ppqg_nb.audio import RATE, resample
from ppqg_nb.video import (Address, MediaError, Sound, VideoWriter, beside, codec, decoded, matrix, open_media, probe, progressive,
                           read_frames, read_sound, shown_frames, streams, upright)


def copy(source, target):
    with beside(target) as part, VideoWriter(part, source) as writer:
        for frame in read_frames(source): writer.write(frame.time, frame.image)
    return target


def lag(a, b, rate, reach=.7):
    "By how many seconds b comes after a"
    a, b, size, reach = np.asarray(a, float), np.asarray(b, float), 2 * max(len(a), len(b)), round(reach * rate)
    c = np.fft.irfft(np.fft.rfft(b, size) * np.fft.rfft(a, size).conj(), size)
    return (np.concatenate([c[-reach:], c[:reach + 1]]).argmax() - reach) / rate


def times_of(path): return np.array([f.time for f in read_frames(path)])


VPX = dict(deadline='realtime', **{'cpu-used': '8'})
KINDS = {
    'variable.mp4': dict(times=irregular()),
    'variable.mkv': dict(times=irregular(), codecs=('libx264', 'flac')),
    'late.mp4': dict(times=irregular(), start=.5),
    'pause.mkv': dict(times=irregular(), codecs=('libx264', 'flac'), pause=(1., 1.5)),
    'broadcast.ts': dict(fps=25),
    'late.ts': dict(fps=25, start=.5),
    'dvd.mpg': dict(fps=25, codecs=('mpeg2video', 'mp2')),
    'vp9.webm': dict(times=irregular(), codecs=('libvpx-vp9', 'libopus'), rate=48000, **VPX),
    'late.webm': dict(times=irregular(), codecs=('libvpx-vp9', 'libopus'), rate=48000, start=.3, **VPX),
    'mp3.mp4': dict(times=irregular(), codecs=('libx264', 'libmp3lame')),
    'six.mp4': dict(fps=25, channels=6),
    'six.mkv': dict(fps=25, channels=6, codecs=('libx264', 'ac3'), rate=48000),
    'old.avi': dict(fps=25, codecs=('mpeg4', 'pcm_s16le')),
    'slow.mkv': dict(fps=25, codecs=('libx264', 'flac'), rate=6000),
    'fast.mov': dict(fps=25, codecs=('libx264', 'pcm_s16le'), rate=96000),
    'three.mkv': dict(fps=25, codecs=('libx264', 'flac'), channels=3, layout='2.1'),
    'ten.mp4': dict(fps=25, pix_fmt='yuv420p10le'),
    'alpha.mkv': dict(fps=25, codecs=('ffv1', 'flac'), pix_fmt='yuva420p'),
    'grey.mkv': dict(fps=25, codecs=('ffv1', 'flac'), pix_fmt='gray'),
}


@pytest.fixture(scope='module', params=KINDS)
def pair(request, tmp_path_factory):
    "A file of one kind, its copy, the times and sound that went in, and its start and rate."
    kind = dict(KINDS[request.param])
    rate, start = kind.get('rate', 44100), kind.get('start', 0.)
    wave, times = noise(rate, kind.pop('channels', 1)), kind.setdefault('times', np.arange(75) / 25)
    folder = tmp_path_factory.mktemp('pair')
    source = save(folder/request.param, wave=wave, **kind)
    return source, copy(source, folder/'copy.mp4'), times, wave, rate, start


def test_frames_and_sound_are_on_one_clock(pair):
    source, _, times, wave, rate, start = pair
    shown, (heard, found) = times_of(source), read_sound(source)
    assert found == rate and len(shown) == len(times) and shown[0] < .03
    assert np.abs(np.diff(shown) - np.diff(times)).max() < .0011
    late = lag(wave.mean(0), heard, rate) - start - shown[0] + times[0]
    assert abs(late) < .002, f'the sound comes {late} s after the picture'


def test_copy_keeps_times_length_and_sound(pair):
    source, target, _, _, rate, _ = pair
    a, b = probe(source), probe(target)
    assert np.abs(times_of(source) - times_of(target)).max() < .001
    if source.suffix != '.avi': assert abs(a.duration - b.duration) < 1 / a.fps     # AVI states the picture's length only
    (x, _), (y, found) = read_sound(source), read_sound(target)
    assert abs(len(x) / rate - len(y) / found) < 1 / a.fps
    if found == rate: assert abs(lag(x, y, rate)) < .002
    else: assert found == 48000 and abs(lag(x[::rate // 1000].abs(), y[::48].abs(), 1000)) <= .002
    assert b.channels == {1: 1, 6: 6}.get(a.channels, 2)


def test_copied_sound_is_copied_bit_by_bit(pair):
    source, target, *_ = pair
    names = probe(source).codecs[1], probe(target).codecs[1]
    if names[0] not in ('aac', 'mp3'):
        assert names[1] == 'aac'
        return
    assert names[0] == names[1]
    assert torch.equal(*(read_sound(p)[0] for p in (source, target)))


def test_copy_plays_in_a_browser(pair):
    source, target, *_ = pair
    data = target.read_bytes()
    assert data.index(b'moov') < data.index(b'mdat')
    with av.open(str(target)) as media:
        video = media.streams.video[0]
        assert (video.pix_fmt, codec(video)) == ('yuv420p', 'h264')
        assert all(p.pts == p.dts for p in media.demux(video) if p.size)


def test_copy_keeps_the_picture(pair):
    source, target, *_ = pair
    change = torch.stack([b.image.float() - a.image.float() for a, b in zip(read_frames(source), read_frames(target))])
    assert change.mean().abs() < .6 and change.abs().mean() < 4


def test_last_frame_stays_to_the_end(tmp_path):
    source = save(tmp_path/'slides.mkv', [0, .3, 1., 1.5], wave=noise())
    target = copy(source, tmp_path/'copy.mp4')
    with av.open(str(target)) as media:
        video = media.streams.video[0]
        assert abs(float(video.duration * video.time_base) - SECONDS) < .1
    assert np.abs(np.diff(times_of(target)) - [.3, .7, .5]).max() < .001


def test_picture_outlasts_sound(tmp_path):
    source = save(tmp_path/'short.mp4', fps=25, wave=noise()[:, :22050])
    target = copy(source, tmp_path/'copy.mp4')
    assert len(times_of(target)) == 75 and abs(probe(target).duration - 3) < .04
    assert torch.equal(*(read_sound(p)[0] for p in (source, target)))


def test_silent_file(tmp_path):
    source = save(tmp_path/'silent.mp4', fps=25)
    with pytest.raises(MediaError, match='has no sound.*--silent'): read_sound(source)
    target = copy(source, tmp_path/'copy.mp4')
    assert (probe(target).rate, probe(target).channels, len(times_of(target))) == (0, 0, 75)


@pytest.mark.parametrize('size', [(47, 63), (1, 1), (30, 40), (121, 64)], ids=str)
def test_odd_sizes(tmp_path, size):
    source = save(tmp_path/'odd.mkv', fps=25, images=pictures(np.arange(4) / 25, size), codecs=('ffv1', 'flac'), pix_fmt='bgr0')
    a, b = probe(source), probe(copy(source, tmp_path/'copy.mp4'))
    assert (a.height, a.width) == size and (b.height, b.width) == tuple(n + n % 2 for n in size)


@pytest.mark.parametrize('signs', [(1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, 1), (-1, 0, 0, -1),
                                   (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)], ids=str)
def test_turned_and_mirrored(tmp_path, signs):
    "Red, green, blue and white corners land where x' = a x + c y, y' = b x + d y puts them."
    image = np.zeros((48, 64, 3), np.uint8)
    corners = {(0, 0): (255, 0, 0), (1, 0): (0, 255, 0), (0, 1): (0, 0, 255), (1, 1): (255, 255, 255)}
    for (x, y), color in corners.items(): image[24 * y:24 * y + 24, 32 * x:32 * x + 32] = color
    source, (a, b, c, d) = save(tmp_path/'turned.mp4', [0, .04], [image] * 2, qp='0'), signs
    data = bytearray(source.read_bytes())
    at = data.index(b'tkhd') + 44
    data[at:at + 36] = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], '>i4').tobytes()
    source.write_bytes(data)
    found = next(read_frames(source)).image
    media = probe(source)
    assert tuple(found.shape) == (3, media.height, media.width) == (3, 48, 64) if a else (3, 64, 48)
    for (x, y), color in corners.items():
        u, v = a * (2 * x - 1) + c * (2 * y - 1), b * (2 * x - 1) + d * (2 * y - 1)
        got = found[:, media.height * (2 + v) // 4, media.width * (2 + u) // 4]
        assert (got.int() - torch.tensor(color)).abs().max() < 12
    again = next(read_frames(copy(source, tmp_path/'copy.mp4'))).image
    assert (again.float() - found.float()).abs().mean() < 6


@pytest.mark.skipif(not hasattr(av.VideoStream, 'set_display_rotation'), reason='this PyAV writes no display matrix')
@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_turned_as_pyav_says(tmp_path, degrees):
    "PyAV counts degrees counter-clockwise, as torch.rot90 does."
    image = pictures([0])[0]
    image[:20] = 0
    with av.open(str(tmp_path/'turned.mp4'), 'w') as out:
        video = out.add_stream('libx264', rate=25, options=dict(qp='0'))
        video.height, video.width, video.pix_fmt = 48, 64, 'yuv420p'
        video.set_display_rotation(degrees)
        out.mux(video.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
        out.mux(video.encode(None))
    found, want = next(read_frames(tmp_path/'turned.mp4')).image, torch.from_numpy(image).rot90(degrees // 90).permute(2, 0, 1)
    assert found.shape == want.shape and (found.float() - want.float()).abs().mean() < 2


def test_shape_of_pixels(tmp_path):
    source = save(tmp_path/'wide.mp4', [0, .04], aspect=Fraction(16, 11))
    assert probe(source).aspect == Fraction(16, 11) == probe(copy(source, tmp_path/'copy.mp4')).aspect


CARD = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255), (255, 255, 255),
                 (0, 0, 0), (128, 128, 128), (200, 40, 90)], float)


def card(path, number, k_r, k_b, full, height):
    "A file of a test card by the formulas of its standard, without FFmpeg's conversion."
    R, G, B = CARD.T / 255
    Y = k_r * R + (1 - k_r - k_b) * G + k_b * B
    C = [(B - Y) / 2 / (1 - k_b), (R - Y) / 2 / (1 - k_r)]
    rows = [255 * Y, *(255 * c + 128 for c in C)] if full else [16 + 219 * Y, *(128 + 224 * c for c in C)]
    with av.open(str(path), 'w') as out:
        video = out.add_stream('libx264', rate=25, options=dict(qp='0'))
        video.width, video.height, video.pix_fmt = 160, height, 'yuv420p'
        video.codec_context.colorspace, video.codec_context.color_range = number, 1 + full
        frame = av.VideoFrame(160, height, 'yuv420p')
        for plane, row, n in zip(frame.planes, rows, (16, 8, 8)):
            pixels = np.zeros((plane.height, plane.line_size), np.uint8)
            pixels[:, :10 * n] = np.round(row).clip(0, 255).astype(np.uint8).repeat(n)
            plane.update(pixels)
        for n in range(2):
            frame.pts = n
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


BT601, BT709, BT2020 = (.299, .114), (.2126, .0722), (.2627, .0593)

@pytest.mark.parametrize('full', [False, True], ids=['limited', 'full'])
@pytest.mark.parametrize('number, k, height', [(1, BT709, 48), (5, BT601, 48), (6, BT601, 720), (9, BT2020, 48), (2, BT601, 48),
                                               (2, BT709, 720)])
def test_colors(tmp_path, number, k, height, full):
    read = lambda path: next(read_frames(path)).image[:, height // 2, 8::16].T.numpy().astype(float)
    source = card(tmp_path/'card.mp4', number, *k, full, height)
    assert np.abs(read(source) - CARD).max() <= 1
    target = copy(source, tmp_path/'copy.mp4')
    again = read(target)
    assert np.abs(again - CARD).max() <= 10 and abs((again - CARD).mean()) < 1
    with open_media(target) as media: assert media.streams.video[0].codec_context.color_range == 1
    assert probe(source).colors[0] == matrix(number, height)
    assert probe(target).colors[0] == (1 if number == 9 else matrix(number, height))      # BT.2020 is written as BT.709


def test_no_bias_of_colors(tmp_path):
    "All colours, not only saturated ones: on average a copy is neither brighter nor darker."
    blocks = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    source = save(tmp_path/'blocks.mkv', [0, .04], [blocks] * 2, codecs=('ffv1', 'flac'), pix_fmt='bgr0')
    read = next(read_frames(source)).image
    assert torch.equal(read, torch.from_numpy(blocks).permute(2, 0, 1))
    change = next(read_frames(copy(source, tmp_path/'copy.mp4'))).image[:, 3::8, 3::8].float() - read[:, 3::8, 3::8].float()
    assert change.mean((1, 2)).abs().max() < .8


BAD = dict(empty=b'', text=b'This is not a video.\n' * 50, noise=bytes(range(256)) * 100)

@pytest.mark.parametrize('f', [probe, read_sound, lambda p: next(read_frames(p)), partial(VideoWriter, 'never.mp4')],
                         ids=['probe', 'read_sound', 'read_frames', 'VideoWriter'])
@pytest.mark.parametrize('name', ['missing', 'folder', *BAD, 'song', 'cut'])
def test_what_is_no_video_gets_a_sentence(tmp_path, monkeypatch, name, f):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/f'{name}.mp4'
    if name == 'folder': path.mkdir()
    elif name in BAD: path.write_bytes(BAD[name])
    elif name == 'cut': path.write_bytes(save(tmp_path/'whole.mp4', fps=25, wave=noise()).read_bytes()[:20000])
    elif name == 'song':
        with av.open(str(path), 'w') as out: out.mux(sing(out, noise(), 44100, 'aac'))
    with pytest.raises(MediaError) as e: f(path)
    assert path.name in str(e.value) and str(e.value).endswith('.') and '\n' not in str(e.value)
    assert not (tmp_path/'never.mp4').exists()


@pytest.mark.parametrize('name, codecs', [('cut.ts', ('libx264', 'aac')), ('cut.mkv', ('libx264', 'aac')),
                                          ('cut.avi', ('mpeg4', 'libmp3lame')), ('cut.mpg', ('mpeg2video', 'mp2'))])
def test_what_is_left_of_a_cut_file(tmp_path, name, codecs):
    source = save(tmp_path/name, fps=25, codecs=codecs, wave=noise())
    data = source.read_bytes()
    source.write_bytes(data[:len(data) * 6 // 10])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        n, target = len(times_of(source)), copy(source, tmp_path/'copy.mp4')
    assert 20 < n < 74 and len(times_of(target)) == n


def test_damage_is_told(tmp_path):
    source = save(tmp_path/'scratched.mp4', fps=25, wave=noise())
    with av.open(str(source)) as media: places = [(p.pos, p.size) for p in media.demux(video=0) if p.size]
    data = bytearray(source.read_bytes())
    for at, size in places[30:33]: data[at:at + size] = np.random.default_rng(0).bytes(size)
    source.write_bytes(data)
    with pytest.warns(UserWarning, match='damaged packets of the video were left out'): shown = times_of(source)
    assert 60 < len(shown) < 75 and set(shown.round(3)) < set((np.arange(75) / 25).round(3))


def test_noise_never_raises_anything_but_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    times = np.arange(25) / 25
    for name, codecs in (('a.mp4', ('libx264', 'aac')), ('b.ts', ('libx264', 'aac')), ('c.mkv', ('mpeg4', 'libmp3lame'))):
        whole = save(tmp_path/name, times, fps=25, codecs=codecs, wave=noise()[:, :44100]).read_bytes()
        for _ in range(8):
            data = bytearray(whole[:rng.integers(len(whole) // 4, len(whole))] if rng.random() < .3 else whole)
            for at in rng.integers(0, len(data), rng.integers(1, 20)): data[at:at + 50] = rng.bytes(50)
            (tmp_path/name).write_bytes(data[:len(whole)])
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: copy(tmp_path/name, tmp_path/'copy.mp4')
                except MediaError: pass
            assert not list(tmp_path.glob('.*'))


def test_titles_in_another_encoding(tmp_path):
    source = save(tmp_path/'title.avi', fps=25, codecs=('mpeg4', 'pcm_s16le'), wave=noise())
    with av.open(str(source)) as old, av.open(str(tmp_path/'b.avi'), 'w') as out:
        out.metadata['title'] = 'Gemuesemarkt'
        tracks = [out.add_stream_from_template(s) for s in old.streams]
        for packet in old.demux():
            if packet.dts is None: continue
            packet.stream = tracks[packet.stream.index]
            out.mux(packet)
    data = (tmp_path/'b.avi').read_bytes()
    assert b'Gemuesemarkt' in data
    source.write_bytes(data.replace(b'Gemuesemarkt', 'Gemüse-markt'.encode('latin-1')))
    assert probe(source).codecs == ('mpeg4', 'pcm_s16le')


def test_names_that_look_like_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path/'plain.mp4', fps=25).rename(tmp_path/'concat:b, 100%03d.mp4')
    assert probe('concat:b, 100%03d.mp4').width == 64


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('count', [0, 1, 40])
def test_nothing_is_left_of_a_failure(tmp_path, error, count):
    source, target = save(tmp_path/'source.mp4', fps=25, wave=noise()), tmp_path/'target.mp4'
    target.write_bytes(b'what was there before')
    with pytest.raises(error), beside(target) as part, VideoWriter(part, source) as writer:
        for frame, _ in zip(read_frames(source), range(count)): writer.write(frame.time, frame.image)
        raise error
    assert target.read_bytes() == b'what was there before'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['source.mp4', 'target.mp4']


def test_nothing_is_left_where_the_disk_is_full(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(VideoWriter, 'mux', full)
    source = save(tmp_path/'source.mp4', fps=25)
    with pytest.raises(OSError): copy(source, tmp_path/'target.mp4')
    assert [p.name for p in tmp_path.iterdir()] == ['source.mp4']


def test_times_must_rise(tmp_path):
    source = save(tmp_path/'source.mp4', fps=25)
    image = next(read_frames(source)).image
    with pytest.raises(ValueError, match='in order'), beside(tmp_path/'target.mp4') as part, VideoWriter(part, source) as writer:
        writer.write(1., image)
        writer.write(1., image)


def test_two_copies_are_equal(tmp_path):
    source = save(tmp_path/'source.mkv', irregular(), wave=noise(), codecs=('libx264', 'flac'))
    assert copy(source, tmp_path/'a.mp4').read_bytes() == copy(source, tmp_path/'b.mp4').read_bytes()


def test_sound_that_changes_its_layout(tmp_path):
    "Two pieces of a broadcast, mono and stereo, one behind the other."
    a = save(tmp_path/'a.ts', fps=25, codecs=('mpeg2video', 'mp2'), wave=noise())
    b = save(tmp_path/'b.ts', 3 + np.arange(75) / 25, fps=25, codecs=('mpeg2video', 'mp2'), start=3., wave=noise(channels=2))
    (tmp_path/'both.ts').write_bytes(a.read_bytes() + b.read_bytes())
    heard, rate = read_sound(tmp_path/'both.ts')
    assert abs(len(heard) / rate - 6) < .1
    assert abs(lag(noise()[0], heard[:3 * rate], rate)) < .03
    assert probe(copy(tmp_path/'both.ts', tmp_path/'copy.mp4')).channels == 1


def ffmpeg(*args):
    "Run the command-line FFmpeg, which makes files that PyAV cannot."
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-y', '-loglevel', 'error', *map(str, args)], check=True)


def counted(n, size=(48, 64)): return [np.full((*size, 3), 3 * k, np.uint8) for k in range(n)]


def test_edit_list(tmp_path):
    "A film that was cut without encoding it again: what lies before the cut is in the file, and is neither seen nor heard."
    wave = noise()
    whole = save(tmp_path/'whole.mp4', images=counted(75), wave=wave, g='25')
    ffmpeg('-ss', 1.3, '-i', whole, '-c', 'copy', tmp_path/'cut.mp4')
    with av.open(str(tmp_path/'cut.mp4'), options=dict(ignore_editlist='1')) as media:
        assert sum(1 for _ in media.decode(video=0)) == 50      # from the key frame at 1 s on
    frames = list(read_frames(tmp_path/'cut.mp4'))
    assert 42 <= len(frames) <= 43 and frames[0].time < .04
    for f in frames: assert abs(f.image.float().mean() / 3 / 25 - (f.time + 1.3)) < .06        # a frame, and rounding
    heard, rate = read_sound(tmp_path/'cut.mp4')
    assert abs(lag(wave[0, round(1.3 * rate):], heard, rate)) < .03 and abs(len(heard) / rate - 1.7) < .05


@pytest.mark.parametrize('before', [1, 70], ids=lambda s: f'{s} s before')
def test_timestamps_that_wrap(tmp_path, before):
    "A broadcast counts to 2**33 ticks, 26.5 hours, and goes on from 0; here in the middle of the film."
    seconds = before + 2
    source = save(tmp_path/'plain.ts', np.arange(seconds * 5) / 5, counted(80, (32, 32)) * 7, wave=np.tile(noise(8000), (1, 24))[:, :8000 * seconds], rate=8000,
                  fps=5, preset='ultrafast')
    ffmpeg('-i', source, '-c', 'copy', '-muxdelay', 0, '-muxpreload', 0, '-output_ts_offset', 2**33 / 90000 - before, tmp_path/'wrapped.ts')
    with av.open(str(tmp_path/'wrapped.ts'), options=dict(correct_ts_overflow='0')) as media:
        ticks = [p.pts for p in media.demux(video=0) if p.pts is not None]
        assert ticks[-1] < ticks[0]                             # it does wrap
    plain, wrapped = times_of(source), times_of(tmp_path/'wrapped.ts')
    assert len(wrapped) == seconds * 5 and np.abs(np.diff(wrapped) - .2).max() < .001 and abs(wrapped[0] - plain[0]) < .05
    (x, rate), (y, _) = read_sound(source), read_sound(tmp_path/'wrapped.ts')
    assert abs(lag(x, y, rate) - (wrapped[0] - plain[0])) < .002 and abs(len(x) - len(y)) < .1 * rate


@pytest.mark.parametrize('start, length', [(.5, 3), (0, 1), (1., 1.)], ids=['late', 'short', 'both'])
def test_sound_that_begins_late_or_ends_early(tmp_path, start, length):
    rate, wave = 16000, .3 * np.ones((1, round(16000 * length)))
    source = save(tmp_path/'a.mkv', irregular(), wave=wave, rate=rate, codecs=('libx264', 'flac'), start=start)
    with Sound(source) as sound: heard = sound.piece(0, 5 * RATE)
    a, b = round(start * RATE), round((start + length) * RATE)
    assert heard[a + 16:b - 16].min() > .29 and heard[:max(0, a - 16)].abs().sum() == 0 and heard[b + 16:].abs().sum() == 0


def test_every_track_is_on_the_clock(tmp_path):
    "Two tracks of pictures and two of sound; the second of each begins later."
    with av.open(str(tmp_path/'a.mkv'), 'w') as out:
        for k in range(2):
            packets = film(out, .4 * k + np.arange(20) / 10, [np.full((32, 32, 3), 60 + 100 * k, np.uint8)] * 20)
            packets += sing(out, np.full((1, 16000), .2 + .2 * k), 16000, 'flac', start=.5 * k)
            if k == 0: first = packets
        out.mux(first + packets)
    for k in range(2):
        frames = list(read_frames(tmp_path/'a.mkv', view=k))
        assert abs(frames[0].time - .4 * k) < .002 and abs(frames[0].image.float().mean() - 60 - 100 * k) < 4
        with Sound(tmp_path/'a.mkv', track=k) as sound: heard = sound.piece(0, 2 * RATE)
        assert abs(heard.max() - .2 - .2 * k) < .01 and abs(int((heard > .1).nonzero()[0]) - 8000 * k) < 20


def moving(k):
    image = np.full((96, 160, 3), 60, np.uint8)
    image[np.add.outer(np.arange(96), np.arange(160)) % 24 < 6] = 100
    image[30:66, 8 * k % 120:8 * k % 120 + 40] = (220, 150, 60)
    return image


def woven(k, first):
    "Two fields in a frame: the even rows first, or the odd ones."
    rows = np.arange(96)[:, None, None] % 2
    return np.where(rows == first, moving(2 * k), moving(2 * k + 1))


@pytest.mark.parametrize('order', ['tff', 'bff'])
@pytest.mark.parametrize('suffix, coding', [('.mkv', ['libx264', '-crf', 8]), ('.mpg', ['mpeg2video', '-qscale:v', 2])], ids=['h264', 'mpeg2'])
def test_interlaced(tmp_path, order, suffix, coding):
    images = [woven(k, order == 'bff') for k in range(20)]
    source = save(tmp_path/'fields.mkv', np.arange(20) / 25, images, codecs=('ffv1', 'flac'), pix_fmt='bgr0')
    tape = tmp_path/f'tape{suffix}'
    ffmpeg('-i', source, '-vf', f'scale=interl=1,format=yuv420p,setfield={order}', '-c:v', *coding, '-flags', '+ilme+ildct', tape)
    with open_media(tape) as media: asis = list(decoded(media, streams(media)[0]))
    frames = list(read_frames(tape))
    assert asis[0].interlaced_frame and len(frames) == len(asis) == 20
    assert np.abs(np.diff([f.time for f in frames]) - .04).max() < .002
    seen = [torch.from_numpy(moving(2 * k)).permute(2, 0, 1).float() for k in range(20)]
    error = np.mean([(f.image - x).abs().mean() for f, x in zip(frames, seen)])
    teeth = np.mean([(upright(f) - x).abs().mean() for f, x in zip(asis, seen)])
    assert error < .75 * teeth
    assert probe(tape).width == 160 and len(times_of(copy(tape, tmp_path/'copy.mp4'))) == 20


def test_progressive_frames_are_not_touched(tmp_path):
    "Neither where all are, nor between interlaced ones; and a size may change in between."
    kinds = dict(plain=dict(), fields={'x264-params': 'bff=1'}, small=dict(images=pictures(np.arange(5) / 25, (30, 40))))
    frames = {}
    for name, options in kinds.items():
        with av.open(str(save(tmp_path/f'{name}.mkv', np.arange(5) / 25, **options))) as media: frames[name] = list(media.decode(video=0))
    assert [f is g for f, g in zip(progressive(iter(frames['plain'])), frames['plain'])] == [True] * 5
    mixed = frames['fields'] + frames['plain'] + frames['small'] + frames['fields']
    for k, f in enumerate(mixed): f.pts = 40 * k
    out = list(progressive(iter(mixed)))
    assert [round(f.time, 6) for f in out] == [round(f.time, 6) for f in mixed] and len(out) == 20
    for a, b in list(zip(out, mixed))[5:15]: assert np.array_equal(a.to_ndarray(), b.to_ndarray())


@pytest.mark.parametrize('name, codec, pix_fmt', [('a.mov', 'png', 'rgba'), ('a.mov', 'prores_ks', 'yuva444p10le'), ('a.mkv', 'ffv1', 'bgra'),
                                                  ('a.webm', 'libvpx-vp9', 'yuva420p')], ids=['png', 'prores', 'ffv1', 'vp9'])
def test_alpha_is_left_out(tmp_path, name, codec, pix_fmt):
    "Opaque, half transparent or not to be seen at all: the colours are those in the file."
    image = np.zeros((48, 96, 4), np.uint8)
    image[..., :3], image[..., 3] = (200, 100, 50), np.repeat([255, 128, 0], 32)
    with av.open(str(tmp_path/name), 'w') as out:
        video = out.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 96, 48, pix_fmt
        out.mux([p for _ in range(3) for p in video.encode(av.VideoFrame.from_ndarray(image, 'rgba').reformat(format=pix_fmt))])
        out.mux(video.encode(None))
    found = next(read_frames(tmp_path/name)).image
    assert found.shape == (3, 48, 96) and (found[:, 8:40, 4::8].int() - torch.tensor([200, 100, 50])[:, None, None]).abs().max() <= 4


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A folder that is served over HTTP, its address, and what was asked for."
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'): monkeypatch.delenv(name, raising=False)
    asked, folder = [], tmp_path/'served'
    folder.mkdir()
    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self): asked.append(self.path); super().do_GET()
        def log_message(self, *args): pass
    found = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield folder, f'http://127.0.0.1:{found.server_port}', asked, Handler
    found.shutdown()
    found.server_close()


def playlist(address): return f'#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{address}\n#EXT-X-ENDLIST\n'

LISTS = {'a.m3u8': playlist, 'a.ffconcat': lambda address: f'ffconcat version 1.0\nfile {address}\n',
         'a.sdp': lambda address: 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
         'a.mpd': lambda address: f'<MPD><Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{address}</BaseURL>'
                                  '</Representation></AdaptationSet></Period></MPD>'}

@pytest.mark.parametrize('points', ['server', 'beside', 'file'])
@pytest.mark.parametrize('name', LISTS)
@pytest.mark.parametrize('called', ['', 'film.mp4'])
def test_playlists_are_refused(tmp_path, server, name, points, called):
    "Whatever they point to, and however they are called; nobody is asked for anything."
    folder, address, asked, _ = server
    save(folder/'secret.ts', fps=25, wave=noise())
    (tmp_path/'beside.ts').write_bytes((folder/'secret.ts').read_bytes())
    target = dict(server=f'{address}/secret.ts', beside='beside.ts', file=f'file:{folder}/secret.ts')[points]
    path = tmp_path/(called or name)
    path.write_text(LISTS[name](target))
    for f in (probe, read_sound, lambda p: next(read_frames(p))):
        with pytest.raises(MediaError, match='playlists are not followed') as e: f(path)
        assert str(e.value).endswith('.') and '\n' not in str(e.value)
    assert asked == []


def test_a_name_with_a_pattern_is_one_file(tmp_path):
    for name, value in (('a%03d.png', 10), ('a001.png', 200)):
        with av.open(str(tmp_path/'one.png'), 'w', format='image2', options=dict(update='1')) as out:
            picture = out.add_stream('png', rate=25)
            picture.width, picture.height, picture.pix_fmt = 32, 32, 'rgb24'
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), 'rgb24')) + picture.encode(None))
        (tmp_path/'one.png').rename(tmp_path/name)
    assert [int(f.image[0, 0, 0]) for f in read_frames(tmp_path/'a%03d.png')] == [10]


@pytest.mark.parametrize('kind', [str, Path])
def test_an_address_needs_to_be_allowed(server, kind):
    folder, address, asked, _ = server
    save(folder/'a.mp4', fps=25)
    for f in (probe, read_sound, lambda p: next(read_frames(p))):
        with pytest.raises(MediaError, match='is an address; allow the network with --network, in Python Address'): f(kind(f'{address}/a.mp4'))
    for other in ('rtsp://127.0.0.1/a', 'concat:/etc/hosts', 'subfile:/etc/hosts', 'data:video/mp4,x'):
        with pytest.raises(MediaError): probe(kind(other))
    assert asked == []


def test_a_film_from_an_address(tmp_path, server):
    folder, address, asked, _ = server
    source = save(folder/'a.mp4', irregular(), wave=noise())
    there = Address(f'{address}/a.mp4')
    assert isinstance(there, str) and probe(there) == probe(source)
    assert all(a.time == b.time and torch.equal(a.image, b.image) for a, b in zip(read_frames(there), read_frames(source), strict=True))
    assert torch.equal(read_sound(there)[0], read_sound(source)[0])
    assert copy(there, tmp_path/'a.mp4').read_bytes() == copy(source, tmp_path/'b.mp4').read_bytes()
    assert set(asked) == {'/a.mp4'}


def test_what_an_address_may_point_to(tmp_path, server):
    "A playlist from the network leads to the network, and to no file of this machine."
    folder, address, asked, _ = server
    save(folder/'a.ts', fps=25, wave=noise())
    (folder/'good.m3u8').write_text(playlist('a.ts'))
    (folder/'evil.m3u8').write_text(playlist(f'file:{folder}/a.ts'))
    (folder/'worse.ffconcat').write_text(f'ffconcat version 1.0\nfile file:{folder}/a.ts\n')
    assert len(times_of(Address(f'{address}/good.m3u8'))) == 75
    for bad in (f'{address}/evil.m3u8', f'{address}/worse.ffconcat', f'{address}/none.mp4', f'file:{folder}/a.ts', str(folder/'a.ts'), 'http://127.0.0.1:1/a.mp4'):
        with pytest.raises(MediaError) as e: times_of(Address(bad))
        assert str(e.value).endswith('.') and '\n' not in str(e.value)


@pytest.mark.parametrize('ends', ['cut', 'silent'])
@pytest.mark.parametrize('part', [0, .5])
def test_a_network_that_fails(tmp_path, server, monkeypatch, ends, part):
    "The server closes the line, or says no more, at once or in the middle of the film."
    monkeypatch.setattr('ppqg_nb.video.TIMEOUT', 1)
    folder, address, _, handler = server
    rng, stop = np.random.default_rng(0), threading.Event()
    images = [rng.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(40)]
    data = save(folder/'a.mkv', np.arange(40) / 25, images, noise()[:, :70000], codecs=('libx264', 'flac'), qp='10').read_bytes()
    def answer(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:int(part * len(data))])
        self.wfile.flush()
        if ends == 'silent': stop.wait(20)
    monkeypatch.setattr(handler, 'do_GET', answer)
    for f in (lambda a: list(read_frames(a)), read_sound, lambda a: copy(a, tmp_path/'copy.mp4')):
        with pytest.raises(MediaError, match='no answer for 1 s' if ends == 'silent' else 'breaks off|can read'): f(Address(f'{address}/a.mkv'))
    stop.set()
    assert not list(tmp_path.glob('*copy*'))
