"Small video files of many makes, written on the spot."
from fractions import Fraction

import av
import numpy as np

SECONDS = 3


def pictures(times, size=(48, 64)):
    "A ramp that moves with time, one (H, W, 3) a time."
    ramp = np.linspace(0, 255, size[1])[None, :, None] * np.ones((size[0], 1, 3))
    return [np.uint8(np.roll(ramp, int(80 * t), 1)) for t in times]


def noise(rate=44100, channels=1):
    "Four fading bursts of low-passed noise, (channels, n)."
    rng, t = np.random.default_rng(0), np.arange(SECONDS * rate) / rate
    bursts = sum((t > s) * np.exp(-8 * (t - s).clip(0)) for s in (.5, 1.2, 1.9, 2.4))
    return np.stack([np.convolve(bursts * rng.normal(size=len(t)) * .3, np.ones(6) / 6, 'same') for _ in range(channels)])


def irregular():
    "Times of frames from 20 to 100 ms apart, in whole milliseconds."
    times = np.cumsum([0, *np.random.default_rng(1).choice([.02, .04, .06, .1], 200)]).round(3)
    return times[times < SECONDS - .1]


def film(out, times, images, codec='libx264', pix_fmt='yuv420p', fps=None, aspect=None, **options):
    clock = Fraction(1, fps or 90000)
    video = out.add_stream(codec, rate=fps or 25, options=options)
    video.height, video.width, video.pix_fmt = *images[0].shape[:2], pix_fmt
    video.codec_context.time_base = clock
    if aspect: video.codec_context.sample_aspect_ratio = aspect
    packets = []
    for image, time in zip(images, times):
        frame = av.VideoFrame.from_ndarray(image, 'rgb24').reformat(format=pix_fmt)
        frame.pts, frame.time_base = round(time / clock), clock
        packets += video.encode(frame)
    return packets + video.encode(None)


def sing(out, wave, rate, codec, start=0., pause=(0, 0), layout=None):
    layout = layout or {1: 'mono', 2: 'stereo', 6: '5.1'}[len(wave)]
    track = out.add_stream(codec, rate=rate, layout=layout)
    size = track.codec_context.frame_size or 1024
    fit = av.AudioResampler(track.codec_context.format.name, layout, rate, frame_size=size)
    packets = []
    for n in range(0, wave.shape[1], size):
        if pause[0] <= n / rate < pause[1]: continue
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, n:n + size], np.float32), 'fltp', layout)
        block.rate, block.pts, block.time_base = rate, n + round(start * rate), Fraction(1, rate)
        for b in fit.resample(block): packets += track.encode(b)
    for b in fit.resample(None): packets += track.encode(b)
    return packets + track.encode(None)


def save(path, times=None, images=None, wave=None, rate=44100, codecs=('libx264', 'aac'), start=0., pause=(0, 0), layout=None, **film_options):
    "A file; times of frames and start of sound in seconds."
    times = np.arange(75) / 25 if times is None else times
    images = pictures(times) if images is None else images
    with av.open(str(path), 'w') as out:
        packets = film(out, times, images, codecs[0], **film_options)
        if wave is not None: packets += sing(out, wave, rate, codecs[1], start, pause, layout)
        out.mux(sorted(packets, key=lambda p: p.dts * p.time_base))         # as a device writes them, side by side
    return path
