"""Post-training methods for one matrix (outputs, inputs), in NumPy and float64.

``x`` holds the inputs, (tokens, inputs). Each returns the new weights and the mask.
"""

import numpy as np


def of_rows(scores, sparsity=None, n_m=None):
    """The best of every row, or n of every m of it; what scores -inf is pruned."""
    n, m = n_m or (scores.shape[1] - round(sparsity * scores.shape[1]), scores.shape[1])
    groups = scores.reshape(len(scores), -1, m)
    best = np.argsort(-groups, axis=-1, kind="stable")[..., :n]
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, best, True, axis=-1)
    return mask.reshape(scores.shape) & (scores > -np.inf)


def kept_where(w, scores, **amount):
    """The weights, and the mask of a score."""
    mask = of_rows(np.where(w == 0, -np.inf, scores), **amount)
    return w * mask, mask


def magnitude(w, x, **amount):
    return kept_where(w, np.abs(w), **amount)


def wanda(w, x, **amount):
    return kept_where(w, np.abs(w) * np.linalg.norm(x, axis=0), **amount)


def ria(w, x, **amount):
    a = np.abs(w)
    shares = a / np.maximum(a.sum(0), 1e-30) + a / np.maximum(a.sum(1), 1e-30)[:, None]
    return kept_where(w, shares * np.sqrt(np.linalg.norm(x, axis=0)), **amount)


def sparse_gpt(w, x, *, sparsity=None, n_m=None, block=128, damping=0.01):
    """Column by column."""
    w, h, allowed = np.array(w, np.float64), x.T @ x, w != 0
    dead = np.diag(h) == 0
    mean = np.diag(h)[~dead].mean()
    h[dead, dead] = mean
    h += damping * mean * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    mask = np.ones(w.shape, bool)

    def scored(columns):
        own = w[:, columns]
        with np.errstate(divide="ignore"):
            scores = np.where(
                dead[columns], -1 / np.abs(own), (own / np.diag(u)[columns]) ** 2
            )
        return np.where(allowed[:, columns], scores, -np.inf)

    for j in range(w.shape[1]):
        if n_m is None and j % block == 0:
            own = slice(j, min(j + block, w.shape[1]))
            score = scored(own)
            worst = np.argsort(score, axis=None)[: round(sparsity * score.size)]
            rows, columns = np.unravel_index(worst, score.shape)
            mask[rows, j + columns] = False
        if n_m is not None and j % n_m[1] == 0:
            own = slice(j, j + n_m[1])
            worst = np.argsort(scored(own), axis=1)[:, : n_m[1] - n_m[0]]
            np.put_along_axis(mask[:, own], worst, False, axis=1)
        mask[:, j] &= allowed[:, j]
        error = np.where(mask[:, j], 0, w[:, j]) / u[j, j]
        w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
        w[~mask[:, j], j] = 0
    return w, mask


def admm(w, x, *, sparsity=None, n_m=None, damping=0.01):
    """ALPS: the same splitting, solved directly, and an exact fit at the end."""
    h = x.T @ x
    dead = np.diag(h) == 0
    mean = np.diag(h)[~dead].mean()
    h[dead, dead] = mean
    h += damping * mean * np.eye(len(h))
    scale = np.sqrt(np.diag(h))
    h = h / np.outer(scale, scale)
    scale[dead] = 1e-6 * scale.min()
    dense = w * scale

    def support(z):
        z = np.where(w == 0, -np.inf, np.abs(z))
        if n_m is not None:
            return of_rows(z, n_m=n_m)
        return of_rows(z.reshape(1, -1), sparsity).reshape(z.shape)

    def fitted(mask):
        new = np.zeros_like(dense)
        for row, keep in enumerate(mask):
            goal = (h @ dense[row])[keep]
            new[row, keep] = np.linalg.solve(h[np.ix_(keep, keep)], goal)
        off = new - dense
        return new / scale, mask, np.sum(off * (off @ h))

    mask = first = support(dense)
    sparse, dual, rho, seen = dense * mask, np.zeros_like(dense), 0.1, mask
    for count in range(1, 301):
        inside = dense @ h - dual + rho * sparse
        new = np.linalg.solve(h + rho * np.eye(len(h)), inside.T).T
        mask = support(new + dual / rho)
        sparse = (new + dual / rho) * mask
        dual = dual + rho * (new - sparse)
        if count % 3 == 0:
            change = (mask & ~seen).sum() / mask.sum()
            seen = mask
            if count >= 30 and change < 3e-4:
                break
            rho *= 1.3 if change > 0.1 else 1.2 if change > 0.005 else 1.1
    fits = fitted(first), fitted(mask)
    return fits[int(fits[1][2] < 0.999 * fits[0][2])][:2]


def dsnot(w, x, *, cycles=50, threshold=0.1, **amount):
    """Swaps in Wanda's mask, row by row."""
    _, mask = wanda(w, x, **amount)
    mean, spread = x.mean(0), np.maximum(x.var(0), 1e-12)
    norms = np.linalg.norm(x, axis=0)
    m = (amount.get("n_m") or (0, w.shape[1]))[1]
    for i, row in enumerate(w):
        gain, touched = row * mean, np.zeros(len(row), bool)
        for _ in range(cycles):
            lost = gain[~mask[i]].sum()
            helps = np.sign(lost) * gain
            grow = ~mask[i] & ~touched & (helps > 0) & (row != 0)
            prune = mask[i] & ~touched & (helps < 0)
            groups = np.arange(len(row)) // m
            grow &= np.isin(groups, groups[prune])
            if abs(lost) <= threshold or not grow.any():
                break
            g = max(np.flatnonzero(grow), key=lambda j: abs(gain[j]) / spread[j])
            own = np.flatnonzero(prune & (groups == groups[g]))
            p = min(own, key=lambda j: abs(row[j]) * norms[j])
            if abs(lost + gain[p] - gain[g]) >= abs(lost):
                break
            mask[i, g], mask[i, p] = True, False
            touched[[g, p]] = True
    return w * mask, mask
