"""k-reciprocal re-ranking (Zhong et al. 2017), without a matrix of all pairs of images.

Letters in shapes: q queries, g gallery images, n both together (queries first), d feature width,
k neighbours, c queries of a chunk, m members of a sparse vector, r neighbours of one image.
A sparse vector is a pair (members (m,), values (m,)): indices among the n images, their weights.
"""

import numpy as np
import torch

from reid.cli import UserError


def k_reciprocal(query_feats, gallery_feats, k1=20, k2=6, weight=0.3, chunk=256):
    """Re-ranking with the k1, k2 and lambda = weight of Zhong et al. It uses no labels.

    query_feats (q d), gallery_feats (g d): L2-normalised tensors. Each image becomes a sparse
    vector: exp(-distance) to the members of its expanded k-reciprocal set R*, summing to 1,
    averaged over its k2 nearest images. Jaccard distance = 1 - sum of minima / sum of maxima of two
    vectors. The result is weight * distance + (1 - weight) * Jaccard distance.

    As in the authors' code, from which published figures come, a list of k neighbours begins with
    the image itself, squared distances are divided by the largest of their row, and MORE than 2/3
    of a neighbour's k/2-reciprocal set must be shared.

    Returns rescore(start, dist) -> (c g): new distances of the queries start, start + 1, ... from
    their -cosine (c g).
    """
    q = len(query_feats)
    g = len(gallery_feats)
    if not 1 <= k2 <= k1 < g:
        raise UserError(f"re-ranking by {k1} neighbours and {k2} of them needs a larger gallery "
                        f"than {g} images; go without --rerank")

    feats = torch.cat([query_feats, gallery_feats])
    near, farthest = neighbours(feats, k1 + 1, chunk)
    own_vectors = reciprocal_vectors(feats.cpu().numpy(), near, farthest, k1)
    vectors = []
    for nearest in near[:, :k2]:
        nearby = [own_vectors[j] for j in nearest]
        vectors.append(mean_vector(nearby))
    images, weights = inverted(vectors[q:], q + g)

    def rescore(start, dist):
        new_dist = np.empty_like(dist)
        for i, minus_cosine in enumerate(dist, start):
            jaccard = jaccard_distance(vectors[i], images, weights, g)
            cosine_dist = 1 + minus_cosine
            new_dist[i - start] = weight * cosine_dist / farthest[i] + (1 - weight) * jaccard
        return new_dist

    return rescore


def neighbours(feats, k, chunk=256):
    """For each of n images: the k nearest, itself first, (n k); its largest 1 - cosine, (n,)."""
    near = []
    farthest = []
    for start in range(0, len(feats), chunk):
        end = start + chunk
        dist = 1 - feats[start:end] @ feats.T
        dist[:, start:end].fill_diagonal_(-1)  # each image first in its own list, duplicates or not

        nearest = dist.topk(k, largest=False).indices
        near.append(nearest.int().cpu())
        farthest.append(dist.amax(1).cpu())

    near = torch.cat(near)
    farthest = torch.cat(farthest).clamp(min=1e-6)
    return near.numpy(), farthest.numpy()


def reciprocal_vectors(feats, near, farthest, k1):
    """A sparse vector for each of n images: its R*, weighted by exp(-distance), summing to 1."""
    half = int(np.around(k1 / 2)) + 1  # and the image itself
    mutual = reciprocal(near)
    mutual_half = reciprocal(near[:, :half])

    vectors = []
    for i in range(len(near)):
        members = expanded(near, mutual, mutual_half, i)
        dist = 1 - feats[members] @ feats[i]
        closeness = np.exp(-dist / farthest[i])
        vectors.append((members, closeness / closeness.sum()))
    return vectors


def reciprocal(near):
    """(n k) bool: whether image i is among the k nearest of its neighbour near[i, j]."""
    mutual = np.empty(near.shape, bool)
    for i, nearest in enumerate(near):
        mutual[i] = (near[nearest] == i).any(1)
    return mutual


def expanded(near, mutual, mutual_half, i):
    """R* of image i: its k-reciprocal neighbours, and their k/2-reciprocal sets of which more than
    2/3 are shared."""
    own = near[i][mutual[i]]
    half_sets = near[own, :mutual_half.shape[1]]  # (r k/2): the nearest of each neighbour
    in_set = mutual_half[own]                     # (r k/2): those of them that are reciprocal

    shared = in_set & (half_sets[:, :, None] == own).any(2)
    joins = 3 * shared.sum(1) > 2 * in_set.sum(1)
    joining = half_sets[in_set & joins[:, None]]
    return np.unique(np.concatenate([own, joining]))


def mean_vector(vectors):
    """Mean of sparse vectors."""
    members, values, _ = concatenated(vectors)
    members, place = np.unique(members, return_inverse=True)
    return members, np.bincount(place, values) / len(vectors)


def concatenated(vectors):
    """The members of sparse vectors, their values, and which of the vectors each belongs to."""
    members, values = zip(*vectors)
    lengths = [len(each) for each in members]
    owners = np.repeat(np.arange(len(vectors)), lengths)
    return np.concatenate(members), np.concatenate(values), owners


def inverted(vectors, n):
    """For each of n images, the indices of the sparse vectors that contain it, and its weights in
    them: two lists of n arrays."""
    members, values, owners = concatenated(vectors)
    order = np.argsort(members, kind="stable")
    ends = np.bincount(members, minlength=n).cumsum()[:-1]
    images = np.split(owners[order], ends)
    weights = np.split(values[order], ends)
    return images, weights


def jaccard_distance(vector, images, weights, size):
    """1 - sum of minima / sum of maxima, for a sparse vector and each of `size` others, given as by
    `inverted`, (size,)."""
    members, own_values = vector
    sharing = [images[member] for member in members]
    lengths = [len(each) for each in sharing]
    own_values = np.repeat(own_values, lengths)
    their_values = np.concatenate([weights[member] for member in members])

    smaller = np.minimum(own_values, their_values)
    minima = np.bincount(np.concatenate(sharing), smaller, size)
    maxima = 2 - minima  # both vectors sum to 1, so minima and maxima together to 2
    return 1 - minima / maxima
