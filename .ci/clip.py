#!/usr/bin/env python3
"""Draw and synthesise the running example: python .ci/clip.py
A bell rings (0-2 s), a bird chirps (2-4 s), both sound (4-5 s); a toy car stands there and is silent.
Writes ppqg_nb/media/example.mp4, and beside it example_labels.png: the sounding objects of the frames at 0, 1, 2, 3 and 4 s."""
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

MEDIA = Path(__file__).resolve().parent.parent/'ppqg_nb'/'media'
SECONDS, FPS, W, H, RATE = 5, 25, 320, 240, 44100
Z = 4                                             # supersampling
CLASSES = dict(bell=6, bird=7)                    # pixel values of AVSBench-semantic
SOUNDS = dict(bell=((0, 2), (4, 5)), bird=((2, 4), (4, 5)))
STROKE, CHIRP = 1/3, 0.25                         # seconds from one stroke or chirp to the next
PIVOT = (84, 47)                                  # the bell hangs here


def sounds(name, t): return any(a <= t < b for a, b in SOUNDS[name])


# The picture: sprites with soft edges, drawn Z times too large

def layer(): return Image.new('RGBA', (W*Z, H*Z))


def points(xy): return [(x*Z, y*Z) for x, y in xy]


def mask(draw_it):
    "What `draw_it(draw)` paints in white."
    m = Image.new('L', (W*Z, H*Z))
    draw_it(ImageDraw.Draw(m))
    return m


def polygon(xy): return mask(lambda d: d.polygon(points(xy), fill=255))


def ellipse(x, y, rx, ry): return mask(lambda d: d.ellipse(points([(x - rx, y - ry), (x + rx, y + ry)]), fill=255))


def rounded(x0, y0, x1, y1, r):
    return mask(lambda d: d.rounded_rectangle(points([(x0, y0), (x1, y1)]), r*Z, fill=255))


def line(xy, width): return mask(lambda d: d.line(points(xy), fill=255, width=round(width*Z), joint='curve'))


def curve(*knots, n=24):
    "A smooth line through the knots (Catmull-Rom)."
    p = np.array([knots[0], *knots, knots[-1]], float)
    s = np.linspace(0, 1, n, endpoint=False)[:, None]
    parts = [0.5*((2*b) + (c - a)*s + (2*a - 5*b + 4*c - d)*s**2 + (3*b - a - 3*c + d)*s**3)
             for a, b, c, d in zip(p, p[1:], p[2:], p[3:])]
    return [tuple(q) for q in np.concatenate([*parts, p[-1:]])]


def shade(m, dark, light, centre=(0.35, 0.3), spread=0.9):
    "Fill a mask with a gradient that is lightest at `centre`, given in parts of the mask's box."
    x0, y0, x1, y1 = m.getbbox()
    y, x = np.mgrid[0:H*Z, 0:W*Z]
    r = np.hypot((x - x0)/(x1 - x0) - centre[0], (y - y0)/(y1 - y0) - centre[1])/spread
    a = np.clip(r, 0, 1)[..., None]**1.3
    rgb = np.array(light)*(1 - a) + np.array(dark)*a
    out = Image.fromarray(rgb.astype(np.uint8)).convert('RGBA')
    out.putalpha(m)
    return out


def flat(m, colour):
    out = Image.new('RGBA', m.size, (*colour, 0))
    out.putalpha(m)
    return out


def stack(*layers):
    out = layer()
    for one in layers: out.alpha_composite(one)
    return out


def turned(image, degrees, pivot): return image.rotate(degrees, Image.BICUBIC, center=(pivot[0]*Z, pivot[1]*Z))


def shadow(m, strength, blur):
    soft = m.filter(ImageFilter.GaussianBlur(blur*Z))
    return flat(soft.point(lambda v: int(v*strength)), (40, 26, 18))


def background():
    "A wall in evening light, a wooden table, the bell's stand and the bird's stump."
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:H*Z, 0:W*Z]/Z
    glow = np.exp(-((x - 205)/190)**2 - ((y - 40)/150)**2)[..., None]
    wall = np.array([176, 190, 188])*(1 - glow) + np.array([240, 232, 210])*glow
    plaster = Image.fromarray(rng.integers(0, 256, (H, W), dtype=np.uint8)).resize((W*Z, H*Z), Image.BICUBIC)
    wall = wall + (np.asarray(plaster.filter(ImageFilter.GaussianBlur(1.2*Z)), float)[..., None] - 127)*0.13
    depth = np.clip((y - 163)/77, 0, 1)[..., None]
    wood = np.array([150, 112, 80])*(1 - depth) + np.array([196, 150, 104])*depth
    grain = np.sin(0.9*y + 2.4*np.sin(x/61 + y/40) + 0.9*np.sin(x/23 - y/9))
    wood = wood + (grain*5)[..., None]*(0.5 + 0.5*depth)
    scene = np.where(y[..., None] < 163, wall, wood)
    edge = np.exp(-((y - 163)/1.2)**2)[..., None]
    scene = scene*(1 - 0.35*edge)
    scene = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8)).convert('RGBA')
    brown, tan = (84, 54, 36), (142, 98, 66)
    stand = stack(shade(rounded(24, 30, 33, 182, 3), brown, tan, (0.3, 0.3), 1.0),
                  shade(polygon([(33, 74), (33, 62), (54, 40), (62, 40)]), brown, tan),
                  shade(rounded(18, 32, 112, 41, 3), brown, tan, (0.4, 0.1), 0.8),
                  shade(rounded(8, 178, 58, 189, 4), brown, tan, (0.4, 0.1), 0.9))
    stump = stack(shade(polygon(curve((207, 176), (209, 150), (206, 138)) + curve((276, 138), (274, 152), (280, 177))
                                + curve((280, 177), (243, 187), (207, 176))), (82, 58, 42), (150, 112, 80), (0.3, 0.2), 1.0),
                  shade(ellipse(241, 138, 35, 8), (170, 128, 86), (222, 184, 134), (0.4, 0.4), 0.8),
                  flat(mask(lambda d: [d.ellipse(points([(241 - r, 138 - r/4.4), (241 + r, 138 + r/4.4)]), outline=110, width=Z)
                                       for r in (10, 19, 28)]), (140, 98, 62)))
    shadows = [shadow(ellipse(40, 190, 38, 5), 0.5, 3), shadow(ellipse(84, 196, 36, 6), 0.35, 5),
               shadow(ellipse(240, 183, 46, 7), 0.5, 4), shadow(ellipse(160, 223, 50, 6), 0.55, 3)]
    return stack(scene, *shadows, stand, stump, toy_car())


def toy_car():
    blue, sky = (22, 62, 142), (78, 142, 222)
    cabin = polygon(curve((133, 202), (140, 184), (150, 180), (172, 180), (181, 187), (189, 202)))
    body = mask(lambda d: d.polygon(points(curve((113, 215), (114, 203), (124, 199), (150, 197), (182, 198), (200, 202), (207, 209), (206, 216))),
                                    fill=255))
    glass = [polygon([(143, 199), (147, 187), (158, 185), (158, 199)]), polygon([(162, 199), (162, 185), (172, 185), (180, 199)])]
    wheels = []
    for x in (132, 188):
        wheels += [shade(ellipse(x, 216, 11, 11), (18, 18, 22), (66, 66, 72)), shade(ellipse(x, 216, 5.5, 5.5), (130, 134, 140), (226, 228, 232)),
                   flat(ellipse(x, 216, 1.6, 1.6), (70, 72, 78))]
    return stack(shade(cabin, blue, sky), shade(body, blue, sky, (0.4, 0.1), 0.7),
                 *(shade(g, (120, 160, 190), (214, 234, 244)) for g in glass),
                 flat(line([(118, 208), (203, 208)], 1.4), (232, 236, 244)), shade(ellipse(203, 206, 3, 2.6), (220, 170, 60), (255, 240, 180)),
                 flat(ellipse(115, 206, 2, 2.6), (196, 40, 36)), *wheels)


def bell(angle):
    "The bell, hanging at PIVOT, swung by `angle` degrees; its clapper lags behind."
    x, y = PIVOT
    left = curve((x - 6, y + 8), (x - 17, y + 16), (x - 21, y + 36), (x - 25, y + 54), (x - 36, y + 68))
    right = [(2*x - a, b) for a, b in left]
    rim = curve((x + 36, y + 68), (x, y + 75), (x - 36, y + 68))
    dark, light = (104, 34, 18), (234, 138, 78)
    body = shade(polygon(left + rim[::-1] + right[::-1]), dark, light, (0.36, 0.4), 0.62)
    bands = stack(flat(line(curve((x - 23, y + 47), (x, y + 51), (x + 23, y + 47)), 2), (96, 32, 18)),
                  flat(line(curve((x - 33, y + 65), (x, y + 71.5), (x + 33, y + 65)), 2.4), (250, 186, 120)),
                  flat(line(curve((x - 17.5, y + 18), (x, y + 21), (x + 17.5, y + 18)), 1.6), (96, 32, 18)))
    shine = flat(line(curve((x - 10, y + 18), (x - 13, y + 36), (x - 18, y + 58)), 3.5).filter(ImageFilter.GaussianBlur(1.2*Z)), (255, 214, 170))
    loop = flat(mask(lambda d: d.ellipse(points([(x - 6, y - 3), (x + 6, y + 11)]), outline=255, width=round(2.6*Z))), (118, 44, 22))
    clapper = stack(flat(line([(x, y + 40), (x, y + 76)], 2.5), (58, 32, 26)), shade(ellipse(x, y + 78, 6, 6), (52, 28, 24), (150, 110, 90)))
    hanging = stack(turned(clapper, -0.3*angle, (x, y + 20)), loop, body, bands, shine)
    return turned(hanging, angle, PIVOT)


def bird(gape, wing, lean):
    "The bird on the stump: beak open by `gape` degrees, wing up by `wing`, leaning back by `lean`."
    yellow, light, ochre = (224, 160, 20), (255, 232, 96), (206, 132, 18)
    legs = stack(flat(line([(238, 118), (236, 136)], 2), (150, 84, 30)), flat(line([(248, 118), (248, 136)], 2), (150, 84, 30)),
                 *(flat(line([(x - 5, 138), (x, 135.5), (x + 4, 138)], 1.8), (150, 84, 30)) for x in (235, 247)))
    tail = shade(polygon(curve((262, 98), (290, 104), (297, 112), (288, 115), (262, 114))), ochre, (240, 190, 50))
    trunk = shade(polygon(curve((222, 78), (214, 94), (220, 112), (240, 123), (262, 117), (272, 101), (258, 84), (246, 66), (222, 78))),
                  yellow, light, (0.3, 0.3), 0.9)
    head = shade(ellipse(232, 68, 18.5, 17.5), yellow, light, (0.4, 0.3), 0.9)
    crest = shade(polygon(curve((230, 52), (238, 43), (241, 46), (248, 44), (246, 56))), ochre, (244, 196, 50))
    wings = shade(polygon(curve((242, 87), (254, 85), (270, 96), (280, 110), (262, 111), (246, 104), (242, 87))), (178, 104, 12), (238, 178, 44))
    hinge = (218, 71)
    upper = shade(polygon(curve((221, 61), (208, 64), (197, 71)) + [(221, 72)]), (214, 88, 18), (252, 150, 60), (0.6, 0.2), 0.8)
    lower = shade(polygon([(221, 69.5)] + curve((201, 71), (209, 75.5), (221, 78))), (190, 70, 14), (232, 120, 40), (0.6, 0.2), 0.8)
    throat = flat(mask(lambda d: d.pieslice(points([(206, 60), (230, 82)]), 180 - 0.6*gape, 180 + 0.4*gape, fill=255)), (128, 24, 34))
    beak = stack(throat, turned(lower, 0.6*gape, hinge), turned(upper, -0.4*gape, hinge))
    eye = stack(flat(ellipse(227, 63, 3.8, 4), (32, 22, 18)), flat(ellipse(225.8, 61.6, 1.3, 1.3), (255, 255, 255)))
    cheek = flat(ellipse(231, 74, 4.5, 3.2).filter(ImageFilter.GaussianBlur(1.2*Z)), (244, 150, 70))
    body = stack(tail, beak, trunk, crest, head, cheek, eye, turned(wings, wing, (245, 90)))
    return stack(legs, turned(body, -lean, (243, 118)))


def bump(t, width): return np.exp(-0.5*(t/width)**2)


def pose(t):
    "What moves at time t: the bell's angle; the bird's beak, wing and lean."
    swing = 24*np.cos(2*np.pi*t/(2*STROKE))
    swing *= np.clip((2 - t)/0.35, 0, 1) if t < 3 else np.clip((t - 3.6)/0.4, 0, 1)
    beat = (t + CHIRP/2) % CHIRP - CHIRP/2 - 0.02      # from the middle of a wide open beak
    chirp = bump(beat, 0.05)*(sounds('bird', t) or sounds('bird', t + 0.08))
    return swing, (44*chirp, 34*chirp, 7*chirp)


def small(image): return image.resize((W, H), Image.BOX)


def picture(t, scene):
    "The frame at time t, and the label map of what sounds in it."
    swing, song = pose(t)
    sprites = dict(bell=bell(swing), bird=bird(*song))
    labels = np.zeros((H, W), np.uint8)
    for name, sprite in sprites.items():
        if sounds(name, t): labels[np.asarray(small(sprite.getchannel('A'))) > 127] = CLASSES[name]
    return small(stack(scene, *sprites.values()).convert('RGB')), labels


# The sound

def ring(t):
    "One stroke: partials that are no multiples of one tone, the higher the shorter."
    partials = [(0.5, 0.5, 1.0), (1, 1, 0.7), (1.19, 0.7, 0.6), (1.5, 0.4, 0.5), (2, 0.8, 0.4), (2.52, 0.4, 0.3), (3.01, 0.35, 0.22),
                (4.1, 0.3, 0.15), (5.4, 0.25, 0.1)]
    tone = sum(a*np.sin(2*np.pi*660*r*t)*np.exp(-np.maximum(t, 0)/(0.55*d)) for r, a, d in partials)
    return tone*(t >= 0)*np.minimum(np.maximum(t, 0)/0.002, 1)


def chirp(t, lift):
    "One chirp: 0.15 s of a tone that sweeps down and up again, with a quick trill on it."
    u = np.clip(t/0.15, 0, 1)
    f = 2600 + lift + 2200*(2*u - 1)**2 + 250*np.sin(2*np.pi*42*t)
    return np.sin(2*np.pi*np.cumsum(f)/RATE)*np.sin(np.pi*u)**0.7*((t >= 0) & (t < 0.15))


def gate(name, t, ramp=0.02):
    "1 while it sounds, with soft ends."
    return sum(np.clip((t - a)/0.002 + 1, 0, 1)*np.clip((b - t)/ramp, 0, 1) for a, b in SOUNDS[name])


def audio():
    "(2, n) float: the bell to the left, the bird to the right, as in the picture."
    t = np.arange(SECONDS*RATE)/RATE
    strokes = np.arange(SECONDS/STROKE)*STROKE
    bells = sum(ring(t - s) for s in strokes if sounds('bell', s) and not 1.9 < s < 2.1)
    bells = bells*np.minimum(gate('bell', t, 0.25), 1)
    chirps = np.arange(0, SECONDS, CHIRP)
    birds = sum(chirp(t - s, 500*((i % 4) in (1, 2))) for i, s in enumerate(chirps) if sounds('bird', s))
    bells, birds = 0.42*bells/np.abs(bells).max(), 0.36*birds/np.abs(birds).max()
    return np.stack([0.9*bells + 0.4*birds, 0.4*bells + 0.9*birds])


def write(path, frames, sound):
    with av.open(str(path), 'w', options=dict(movflags='+faststart', fflags='+bitexact')) as out:
        video = out.add_stream('libx264', rate=FPS, options=dict(crf='20', preset='veryslow', threads='1', g='25'))
        video.width, video.height, video.pix_fmt = W, H, 'yuv420p'
        tone = out.add_stream('aac', rate=RATE, layout='stereo')
        tone.bit_rate = 128_000
        for i, frame in enumerate(frames):
            frame = av.VideoFrame.from_image(frame)
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for i in range(0, sound.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, i:i + 1024], np.float32), 'fltp', 'stereo')
            block.sample_rate, block.pts, block.time_base = RATE, i, Fraction(1, RATE)
            out.mux(tone.encode(block))
        out.mux(tone.encode(None))


def main():
    MEDIA.mkdir(exist_ok=True)
    scene = background()
    drawn = [picture(i/FPS, scene) for i in range(SECONDS*FPS)]
    write(MEDIA/'example.mp4', [frame for frame, _ in drawn], audio())
    labels = np.concatenate([drawn[i*FPS][1] for i in range(SECONDS)])
    Image.fromarray(labels).save(MEDIA/'example_labels.png', optimize=True)


if __name__ == '__main__': main()
