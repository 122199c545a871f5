"""Re-ranking by shared neighbours (Zhong et al. 2017), without a matrix of all images.

Letters in shapes: q queries, g gallery images, n both together (queries first), d feature width,
k neighbours, c queries of a chunk, m members of a sparse vector, r neighbours of one image.
A sparse vector is a pair (members (m,), values (m,)): indices among the n images, their weights.
"""

from typing import NamedTuple

import numpy as np
import torch

from cli import UserError


def k_reciprocal(query_feats, gallery_feats, k1=20, k2=6, weight=0.3, chunk=256):
    """Re-ranking with the k1, k2 and lambda = weight of Zhong et al. No label is looked at.

    query_feats (q d), gallery_feats (g d): L2-normalised tensors. Each image becomes a sparse
    vector: exp(-distance) to the members of its expanded k-reciprocal set R*, summing to 1,
    averaged over its k2 nearest images. Images are near if theirs overlap: Jaccard distance =
    1 - sum of minima / sum of maxima. The result is weight * distance + (1 - weight) * Jaccard.

    Only neighbour lists and sparse vectors are kept, never an (n n) matrix. As in the authors'
    code, which published figures come from, a list of k neighbours has the image itself ahead of
    them, squared distances are divided by the largest of their row, and half of a neighbour's set
    must be shared by MORE than 2/3.

    Returns rescore(start, dist) -> (c g): new distances of the queries start, start + 1, ... from
    their -cosine (c g). UserError if the gallery is too small.
    """
    if not 1 <= k2 <= k1 < len(gallery_feats):
        raise UserError(f"re-ranking by {k1} neighbours and {k2} of them: the gallery must hold "
                        f"more images than that, and holds {len(gallery_feats)}; go without --rerank")

    feats = torch.cat([query_feats, gallery_feats])
    near, farthest = neighbours(feats, k1 + 1, chunk)
    sets = reciprocal_vectors(feats.cpu().numpy(), near, farthest, k1)

    vectors = []
    for nearest in near[:, :k2]:
        sets_nearby = [sets[j] for j in nearest]
        vectors.append(mean_vector(sets_nearby))
    gallery = inverted(vectors[len(query_feats):], len(feats))

    def rescore(start, dist):
        new_dist = np.empty_like(dist)
        for row, cosine_dist in enumerate(dist):
            i = start + row
            jaccard = jaccard_distance(vectors[i], gallery)
            new_dist[row] = weight * (1 + cosine_dist) / farthest[i] + (1 - weight) * jaccard
        return new_dist

    return rescore


def neighbours(feats, k, chunk=256):
    """Of each of n images: the k nearest, itself first, (n k); its largest 1 - cosine, (n,)."""
    near = []
    farthest = []
    for start, rows in zip(range(0, len(feats), chunk), feats.split(chunk)):
        dist = 1 - rows @ feats.T
        itself = dist[:, start:start + chunk]
        itself.fill_diagonal_(-1)  # each image first in its own list, duplicates or not
        near.append(dist.topk(k, largest=False).indices.int().cpu())
        farthest.append(dist.amax(1).clamp(min=1e-6).cpu())
    return torch.cat(near).numpy(), torch.cat(farthest).numpy()


# ---- R*, the expanded k-reciprocal sets ----

def reciprocal_vectors(feats, near, farthest, k1):
    """A sparse vector of each of n images: its R*, weighted by nearness, summing to 1."""
    half = int(np.around(k1 / 2)) + 1  # the image itself comes on top
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
    """(n k) bool: is image i among the k nearest of its own neighbour near[i, j]?"""
    return np.stack([(near[row] == i).any(1) for i, row in enumerate(near)])


def expanded(near, mutual, mutual_half, i):
    """R* of image i: its k-reciprocal neighbours, and the k/2-reciprocal sets of these if more than
    2/3 of them is shared."""
    own = near[i][mutual[i]]
    half_sets = near[own, :mutual_half.shape[1]]  # (r k/2): the nearest of each neighbour
    in_set = mutual_half[own]                     # (r k/2): those of them that are reciprocal

    shared = (half_sets[:, :, None] == own).any(2) & in_set
    joins = 3 * shared.sum(1) > 2 * in_set.sum(1)
    joining = half_sets[joins][in_set[joins]]
    return np.unique(np.concatenate([own, joining]))


# ---- sparse vectors ----

def mean_vector(vectors):
    """Mean of sparse vectors."""
    all_members = np.concatenate([members for members, _ in vectors])
    all_values = np.concatenate([values for _, values in vectors])
    members, place = np.unique(all_members, return_inverse=True)
    return members, np.bincount(place, all_values) / len(vectors)


class InvertedIndex(NamedTuple):
    """Sparse vectors of g images by member: that of images[begin[j]:begin[j + 1]] have member j."""
    size: int           # g
    begin: np.ndarray   # (n + 1,)
    images: np.ndarray  # which of the g images
    values: np.ndarray  # the weight of the member in that image's vector


def inverted(vectors, n):
    """The InvertedIndex of sparse vectors whose members are among n images."""
    members = np.concatenate([members for members, _ in vectors])
    values = np.concatenate([values for _, values in vectors])
    lengths = [len(members) for members, _ in vectors]
    images = np.repeat(np.arange(len(vectors)), lengths)

    order = np.argsort(members, kind="stable")
    ends = np.bincount(members, minlength=n).cumsum()
    begin = np.concatenate([[0], ends])
    return InvertedIndex(len(vectors), begin, images[order], values[order])


def jaccard_distance(vector, index):
    """1 - sum of minima / sum of maxima, of a sparse vector and the g vectors of an index, (g,)."""
    members, own_values = vector
    begin = index.begin[members]
    end = index.begin[members + 1]
    sharing = [slice(*bounds) for bounds in zip(begin, end)]  # a slice for each member

    images = np.concatenate([index.images[part] for part in sharing])
    their_values = np.concatenate([index.values[part] for part in sharing])
    own_values = np.repeat(own_values, end - begin)

    minima = np.bincount(images, np.minimum(own_values, their_values), index.size)
    maxima = 2 - minima  # both vectors sum to 1
    return 1 - minima / maxima
