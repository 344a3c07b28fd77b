"""Robust masking, clipping and detection on local evidence, transcribed slowly in float64.

``evidence[n, H, W, K]``; nothing here imports the package. Attackers try every content of a window
from a small alphabet, all classes on their own where the rule treats them so.
"""

from __future__ import annotations

import itertools

import numpy as np


def windows(cells, window, wrap=False):
    """Flat cell numbers of every window, top to bottom and left to right."""
    (h, w), (p, q) = cells, window
    rows, columns = (range(h), range(w)) if wrap else (range(h - p + 1), range(w - q + 1))
    return [
        sorted({(r + i) % h * w + (c + j) % w for i in range(p) for j in range(q)})
        for r in rows
        for c in columns
    ]


def masked_score(flat, boxes, threshold):
    """Algorithm 1 for one class, ``flat[n, cells]``: the sum, less a largest window above T."""
    total = flat.sum(axis=1)
    largest = np.max([flat[:, box].sum(axis=1) for box in boxes], axis=0)
    return np.where(largest > threshold * total, total - largest, total)


def robust_masking(evidence, window, clip=np.inf, threshold=0.0, wrap=False):
    n, h, w, k = evidence.shape
    flat = np.clip(evidence, 0, clip).reshape(n, h * w, k).astype(np.float64)
    boxes = windows((h, w), window, wrap)
    scores = np.stack([masked_score(flat[..., c], boxes, threshold) for c in range(k)], axis=1)
    return k - 1 - scores[:, ::-1].argmax(axis=1)


def robust_masking_by_attack(
    evidence, labels, window, alphabet, *, clip=np.inf, threshold=0.0, wrap=False, ties=None,
    attacked_sets=None,
):  # fmt: skip
    """Whether no content from the alphabet, in any window, changes the answer; by exhaustion.

    ``attacked_sets``: lists of flat cell numbers, where these are attacked and not the windows.
    """
    n, h, w, k = evidence.shape
    flat = np.clip(evidence, 0, clip).reshape(n, h * w, k).astype(np.float64)
    boxes = windows((h, w), window, wrap)
    robust = np.ones(n, bool)
    for box in boxes if attacked_sets is None else attacked_sets:
        least, most = np.full((n, k), np.inf), np.full((n, k), -np.inf)
        for content in itertools.product(alphabet, repeat=len(box)):
            attacked = flat.copy()
            attacked[:, box] = np.clip(content, 0, clip)[None, :, None]
            scores = np.stack(
                [masked_score(attacked[..., c], boxes, threshold) for c in range(k)], axis=1
            )
            least, most = np.minimum(least, scores), np.maximum(most, scores)
        own = least[np.arange(n), labels][:, None]
        wins = (own > most) | (
            (own == most) & (np.arange(k)[None, :] < labels[:, None]) & (ties == "largest")
        )
        robust &= (wins | (np.arange(k)[None, :] == labels[:, None])).all(axis=1)
    return robust


def theorem_2(evidence, labels, window, clip, threshold, wrap=False):
    """Least score of the label against ``max(B, min(B / (1 - T), B + |w| clip))``, strictly."""
    n, h, w, k = evidence.shape
    flat = np.clip(evidence, 0, clip).reshape(n, h * w, k).astype(np.float64)
    boxes = [set(box) for box in windows((h, w), window, wrap)]
    robust = np.ones(n, bool)
    for image, label in enumerate(labels):
        for box in boxes:
            out = flat[image].copy()
            out[sorted(box)] = 0
            own, total = out[:, label], out.sum(axis=0)
            sums = [(own[sorted(other)].sum(), bool(other & box)) for other in boxes]
            best = max(s for s, _ in sums)
            taken = max(s for s, meets in sums if meets)
            if best > threshold * total[label]:
                taken = max(taken, best)
            for z in range(k):
                above = min(total[z] / (1 - threshold), total[z] + len(box) * clip)
                if z != label and not total[label] - taken > max(total[z], above):
                    robust[image] = False
    return robust


def printed_robust_masking(evidence, window):
    """The rule as first printed, T = 0: the predicted class's window is taken from all classes."""
    n, h, w, k = evidence.shape
    flat = np.clip(evidence, 0, None).reshape(n, h * w, k).astype(np.float64)
    boxes = windows((h, w), window)
    answers = []
    for image in flat:
        first = k - 1 - image.sum(axis=0)[::-1].argmax()
        box = boxes[int(np.argmax([image[b, first].sum() for b in boxes]))]
        left = image.sum(axis=0) - image[box].sum(axis=0)
        answers.append(k - 1 - left[::-1].argmax())
    return np.array(answers)


def printed_certificate(image, label, window, threshold=0.0):
    """What the first program certifies of one image ``[H, W, K]``: the runner-up, window by window.

    Its cases for each window of a patch: the runner-up's gain stays below the share that is
    detected; the runner-up's largest window, or one of the label's that overlaps, takes too much.
    """
    h, w, k = image.shape
    flat = np.clip(image, 0, None).reshape(h * w, k).astype(np.float64)
    order = sorted(range(k), key=lambda c: (flat[:, c].sum(), c))
    if order[-1] != label:
        return False
    runner = order[-2]
    boxes = windows((h, w), window)
    for box in boxes:
        left = flat.copy()
        left[box] = 0
        own, other = left[:, label], left[:, runner]
        needed = own.sum() - other.sum()
        if needed < threshold * own.sum():
            return False
        largest = boxes[int(np.argmax([other[b].sum() for b in boxes]))]
        partly = max(own[b].sum() for b in boxes if set(b) & set(box))
        if max(own[largest].sum(), partly) > needed:
            return False
    return True


def clipped_mean(evidence, clip=None):
    values = np.tanh(0.05 * evidence - 1) if clip is None else np.clip(evidence, 0, clip)
    return values.mean(axis=(1, 2)).argmax(axis=1)


def region_votes(evidence, threshold=0.0):
    """BagCert's scores, counted region by region: ``int[n, K]``."""
    n, h, w, k = evidence.shape
    votes = np.zeros((n, k), int)
    for row, column in itertools.product(range(h), range(w)):
        for label in range(k):
            votes[:, label] += np.where(evidence[:, row, column, label] > threshold, 1, 0)
    return votes


def most_regions(evidence, threshold=0.0):
    """The smallest label of those with most."""
    return region_votes(evidence, threshold).argmax(axis=1)


def detection(evidence, window, tau):
    """PatchGuard++'s answer for each image; -2 is an alert."""
    n, h, w, k = evidence.shape
    flat = evidence.reshape(n, h * w, k).astype(np.float64)
    total = flat.sum(axis=1)
    answers = k - 1 - total[:, ::-1].argmax(axis=1)
    alert = np.zeros(n, bool)
    for box in windows((h, w), window):
        rest = np.delete(flat, box, axis=1).sum(axis=1) / (
            h * w
        )  # summed outside, not by difference
        odds = np.exp(rest - rest.max(axis=1, keepdims=True))
        confidence = odds.max(axis=1) / odds.sum(axis=1)
        alert |= (rest.argmax(axis=1) != answers) & (confidence > tau)
    return np.where(alert, -2, answers)


def sets_of_cells(image, shapes, boxes, field, stride):
    """What a patch of some shape reaches at some place inside the boxes, pixel by pixel.

    Lists of flat cell numbers, none inside another; ``boxes`` are (top, left, bottom, right).
    """
    (h, w), (rows, columns) = image, ((n - field) // stride + 1 for n in image)
    allowed = {(r, c) for t, le, b, ri in boxes for r in range(t, b) for c in range(le, ri)}
    sets = set()
    for height, width in shapes:
        for top, left in itertools.product(range(h - height + 1), range(w - width + 1)):
            patch = {(top + r, left + c) for r in range(height) for c in range(width)}
            if patch <= allowed:
                sets.add(
                    frozenset(
                        i * columns + j
                        for i, j in itertools.product(range(rows), range(columns))
                        if patch
                        & {
                            (i * stride + r, j * stride + c)
                            for r in range(field)
                            for c in range(field)
                        }
                    )
                )
    return sorted(sorted(one) for one in sets if not any(one < other for other in sets))


def unanimous_masks(features, mask, stride, threshold):
    """PatchCURE's MRPooling: labels and confidences of masks, and what they answer, -1 an alert.

    A mask leaves the mean of the cells that it does not hide. Of the labels with a softmax above
    the threshold all have to be one. The last mask of an axis ends at its border.
    """
    n, h, w, _ = features.shape
    tops, lefts = (
        sorted({*range(0, cells - m + 1, s), cells - m})
        for cells, m, s in zip((h, w), mask, stride, strict=True)
    )
    labels, trust = [], []
    for top, left in itertools.product(tops, lefts):
        kept = np.ones((h, w), bool)
        kept[top : top + mask[0], left : left + mask[1]] = False
        means = features[:, kept].astype(np.float64).mean(axis=1)
        softmax = np.exp(means) / np.exp(means).sum(axis=1, keepdims=True)
        labels.append(means.argmax(axis=1))
        trust.append(softmax.max(axis=1))
    labels, trust = np.array(labels), np.array(trust)
    said = [set(labels[trust[:, i] > threshold, i].tolist()) for i in range(n)]
    return labels, trust, np.array([one.pop() if len(one) == 1 else -1 for one in said])
