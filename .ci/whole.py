#!/usr/bin/env python3
"""Draw the picture of the front page: .ci/whole.py
One frame and two sounds of the demo's pair, and what scenes-tiny made of them. Writes nbs/images/whole.png."""
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw

from ppqg_nb.core import OKABE_ITO
from ppqg_nb.explorer import OWN, Stages, pair_films
from ppqg_nb.masks import class_probabilities
from ppqg_nb.segmenter import Segmenter, font
from ppqg_nb.vct import VCT

OUT = Path(__file__).resolve().parent.parent/'nbs'/'images'/'whole.png'
Z, W, H = 2, 700, 592                       # dots a pixel; pixels
SIDE, TITLE, LOOK = 160, 26, 5              # pixels: of a picture, of the line above it; the look that is shown
COLUMNS, ROWS = (8, 270, 532), (6, 202, 398)
INK, UNLIT = '#222222', '#E4E4E4'
WORDS = '''The queries come from
the picture, are prompted
with prototypes of the kinds
of sound there are, and
share out the pixels.'''


def coloured(owners):
    "The owner map in colours, the query with most cells grey."
    queries, cells = owners.unique(return_counts=True)
    others = queries[cells.argsort(descending=True)][1:]
    out = np.full((*owners.shape, 3), ImageColor.getrgb(UNLIT), np.uint8)
    for n, query in enumerate(others): out[owners == query] = ImageColor.getrgb(OKABE_ITO[n % 7])
    return out


def answers(prediction):
    "What each query marks, 4 × 4 tiles (H, W): its mask times the probability that it is an object, black where that is 1."
    p = class_probabilities(prediction.class_logits[0])[:, 1:].sum(-1)
    masks = (p[:, None, None]*prediction.mask_logits[0].sigmoid()).unflatten(0, (4, 4))        # (4, 4, h, w)
    tiles = 255 - (255*masks).byte().numpy()
    tiles[..., 0, :] = tiles[..., 0] = 190
    return np.block([list(row) for row in tiles])


def shaded(patch):
    "A log-mel patch (96, 64) as a picture in greys, time to the right, high bands up; what is loud is dark."
    x = patch.T.flip(0)
    return (255*(1 - (x - x.min())/(x.max() - x.min()))).to(torch.uint8).numpy()


def marked(step):
    "The frame of a step, (H, W, 3), pale where nothing is marked."
    frame = step.frame.float()
    return frame.where(step.labels > 0, 204 + .2*frame).byte().permute(1, 2, 0).numpy()


def put(page, row, column, title, picture):
    "A picture, (h, w) or (h, w, 3) uint8, under its title."
    x, y = COLUMNS[column]*Z, ROWS[row]*Z
    ImageDraw.Draw(page).text((x, y), title, INK, font(18*Z))
    small = picture.shape[0] < 100                      # a map of few cells keeps their edges
    shown = Image.fromarray(picture).resize((SIDE*Z, SIDE*Z), Image.NEAREST if small else Image.LANCZOS)
    page.paste(shown, (x, y + TITLE*Z))
    ImageDraw.Draw(page).rectangle((x, y + TITLE*Z, x + SIDE*Z, y + (TITLE + SIDE)*Z), outline=INK, width=Z)


def arrow(page, row, column, word):
    "From a picture to the one on its right, with a word above."
    x, y = (COLUMNS[column] + SIDE + 8)*Z, (ROWS[row] + TITLE + SIDE//2)*Z
    end, draw = (COLUMNS[column + 1] - 8)*Z, ImageDraw.Draw(page)
    draw.line((x, y, end - 8*Z, y), INK, 3*Z)
    draw.polygon([(end, y), (end - 14*Z, y - 8*Z), (end - 14*Z, y + 8*Z)], INK)
    draw.text(((x + end)//2, y - 6*Z), word, INK, font(19*Z), anchor='ms')


def whole():
    "The picture, made from what the model computes."
    page = Image.new('RGB', (W*Z, H*Z), 'white')
    with TemporaryDirectory() as folder:
        films = pair_films(folder)
        stages = Stages(Segmenter(VCT.from_pretrained('scenes-tiny')), films[0], films[1:])
    put(page, 0, 0, 'a frame', stages.images[LOOK].permute(1, 2, 0).numpy())
    put(page, 0, 1, 'shared by queries', coloured(stages.owners(LOOK)))
    arrow(page, 0, 0, 'see')
    beside = (COLUMNS[1] + SIDE + 14)*Z, (ROWS[0] + TITLE)*Z
    ImageDraw.Draw(page).multiline_text(beside, WORDS, INK, font(18*Z), spacing=9*Z)
    for row, sound, title in zip((1, 2), (OWN, str(films[1])), ('a sound', 'another sound')):
        heard = stages.heard(LOOK, sound)
        put(page, row, 0, title, shaded(stages.mel_patch(LOOK, sound)[0]))
        put(page, row, 1, '16 queries answer', answers(heard.prediction))
        put(page, row, 2, 'marked: ' + ', '.join(o.name for o in heard.step.objects), marked(heard.step))
        arrow(page, row, 0, 'listen')
        arrow(page, row, 1, 'mark')
    return page


if __name__ == '__main__': whole().quantize(256, kmeans=1).save(OUT, optimize=True)
