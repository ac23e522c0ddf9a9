#!/usr/bin/env python3
"""Draw nbs/images/card.png, the picture that goes with a link to the site: the running example, what sounds in colour."""
from pathlib import Path

import matplotlib
matplotlib.use('Agg')
import matplotlib.pyplot as plt, torch
from ppqg_nb.core import class_colors, example_clip

CARD = Path(__file__).resolve().parent.parent/'nbs'/'images'/'card.png'
NIGHT, GOLD = '#12344d', '#ffd27a'


def marked(frame, label):
    "A frame `(3, H, W)` in pale grey, what sounds in its colour: `(H, W, 3)` in 0 to 1"
    pale = 150 + frame.float().mean(0, keepdim=True) / 2.5
    color = torch.tensor(class_colors(71)).float()[label].permute(2, 0, 1)
    return torch.where(label > 0, .75 * color + .25 * frame, pale).permute(1, 2, 0).clamp(0, 255) / 255


def main():
    clip, fig = example_clip(), plt.figure(figsize=(12, 6.3), dpi=100, facecolor=NIGHT)
    fig.text(.05, .87, 'Which pixels make the sound?', color='white', fontsize=40, weight='bold', va='center')
    fig.text(.05, .755, 'Audio-visual segmentation, built stage by stage in notebooks', color='white', fontsize=21,
             va='center')
    for i, t in enumerate((1, 3, 4)):
        ax = fig.add_axes((.05 + .305 * i, .26, .29, .42))
        ax.imshow(marked(clip.frames[t], clip.labels[t])); ax.axis('off')
    ax = fig.add_axes((.05, .1, .9, .14))
    ax.plot(clip.waveform[:5 * clip.rate:20].numpy(), color=GOLD, lw=.7); ax.axis('off'); ax.margins(x=0)
    fig.text(.05, .055, 'ppqg_nb', color=GOLD, fontsize=21, weight='bold', va='center')
    fig.text(.95, .055, 'Vision-Centric Transformer, from the waveform to the loss', color='white', fontsize=17,
             va='center', ha='right')
    fig.savefig(CARD, facecolor=NIGHT, metadata={'Software': None})


if __name__ == '__main__': main()
