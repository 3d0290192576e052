"""Vision Remember written once more, in loops over images, tokens, heads and patches, straight from its equations."""

import math

import torch

from tests.refusion.scene import BACKBONES, COARSE, FINE, GUIDANCE, IMAGES


def rms(x, weight):
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def heads_of(attention, query, keys, bias=None):
    """Attention of one query over a list of keys, head by head, as the equation says."""
    width = BACKBONES.head_width
    q = attention.q.weight @ query
    k = torch.stack([attention.k.weight @ key for key in keys])
    v = torch.stack([attention.v.weight @ key for key in keys])
    seen = []
    for head in range(len(q) // width):
        shared = head * k.shape[1] // len(q)  # the key head of this head
        mine, its = slice(head * width, (head + 1) * width), slice(shared * width, (shared + 1) * width)
        scores = k[:, its] @ q[mine] / math.sqrt(width)
        if bias is not None:
            scores = scores + torch.stack(bias)[:, head]
        weights = torch.exp(scores) / torch.exp(scores).sum()
        seen.append(weights @ v[:, its])
    return attention.out.weight @ torch.cat(seen)


def window_of(token, margin, fine=FINE, coarse=COARSE):
    """Patches of a token's window, each with its offset from the window's start, and the window's sides."""
    row, column = divmod(token, coarse.width)

    def span(cell, patches, cells):
        return math.floor(cell * patches / cells) - margin, math.ceil((cell + 1) * patches / cells) + margin

    (top, bottom), (left, right) = span(row, fine.height, coarse.height), span(column, fine.width, coarse.width)
    for h in range(max(top, 0), min(bottom, fine.height)):
        for w in range(max(left, 0), min(right, fine.width)):
            yield h * fine.width + w, (h - top, w - left), (bottom - top, right - left)


def standardised(x):
    """LayerNorm without parameters."""
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)


def read_by(reader, x):
    """Linear, gelu, linear, LayerNorm; or nothing."""
    if isinstance(reader, torch.nn.Identity):
        return x
    first, _, second, norm = reader
    inner = first.weight @ x + first.bias
    y = second.weight @ (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) + second.bias
    return standardised(y) * norm.weight + norm.bias


def by_loops(refusion, child, hidden, seen, coarse=COARSE):
    """The whole layer for every image and token, written from the docstring of the module."""
    out, side = hidden.clone(), refusion.config.position_side
    for image, (row, start) in enumerate(IMAGES):
        tokens = [hidden[row, start + token] for token in range(coarse.num_cells)]
        attention = child.self_attention
        if attention is not None:
            context = [rms(token, attention.norm.weight) for token in tokens]
            if refusion.config.guidance:
                text = [hidden[r, a:b].mean(0) for r, a, b in GUIDANCE[image : image + 1]]
                context.append(rms(text[0] if text else attention.no_text, attention.norm.weight))
            heard = [heads_of(attention, rms(token, attention.norm.weight), context) for token in tokens]
            tokens = [token + what for token, what in zip(tokens, heard, strict=True)]
        attention = child.cross_attention
        for number, token in enumerate(tokens):
            keys, bias = [], []
            for patch, offset, sides in window_of(number, refusion.config.margin, seen.grid, coarse):
                levels = [seen.level(index)[image, patch] for index in refusion.levels]
                keys.append(read_by(refusion.reader, torch.cat([standardised(x) for x in levels])))
                at = [math.floor((d + 0.5) * side / s) for d, s in zip(offset, sides, strict=True)]
                bias.append(attention.position[at[0] * side + at[1]])
            token = token + heads_of(attention, rms(token, attention.norm.weight), keys, bias)
            if child.ffn is not None:
                inner = child.ffn.up.weight @ rms(token, child.ffn.norm.weight)
                token = token + child.ffn.out.weight @ (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
            out[row, start + number] = token
    return out
