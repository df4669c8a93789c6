"""Recommendation: samples of click logs, and MovieLens 100k."""

import csv
import io
import zipfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workingpapers.data.store import locate
from workingpapers.errors import unknown

CLICKS = {
    "criteo_sample": "criteo_sample.txt",
    "movielens_sample": "movielens_sample.txt",
    "avazu_sample": "avazu_sample.txt",
    "byterec_sample": "byterec_sample.txt",
    "amazon_electronics_sample": "amazon_electronics_sample.csv",
    "amazon_books_sample": "amazon_books_sample.csv",
}
BYTEREC_COLUMNS = [
    *("uid", "user_city", "item_id", "author_id", "item_city", "channel"),
    *("finish", "like", "music_id", "device", "time", "duration_time"),
]


def clicks(name: str) -> list[dict[str, str]]:
    """Load 100 or 200 rows of a log as text by column; a missing value is "".

    `name`: criteo_sample, movielens_sample, avazu_sample, byterec_sample, amazon_electronics_sample or
    amazon_books_sample.
    """
    if name not in CLICKS:
        raise unknown("click log", name, CLICKS)
    with locate(f"ctr_samples/{CLICKS[name]}").open(encoding="utf-8", newline="") as stream:
        if name == "byterec_sample":  # tabs, and no header
            return list(csv.DictReader(stream, BYTEREC_COLUMNS, delimiter="\t"))
        return list(csv.DictReader(stream))


@dataclass(frozen=True)
class Ratings:
    """Ratings of items by users.

    user, item: int64 (R,), counted from 0.  rating: float32 (R,), 1 to 5.  time: int64 (R,), Unix seconds.
    genres: float32 (items, 19), 0 or 1.  titles: one an item.
    """

    user: Tensor
    item: Tensor
    rating: Tensor
    time: Tensor
    genres: Tensor
    titles: list[str]


def movielens100k() -> Ratings:
    """Load MovieLens 100k: 100,000 ratings of 1,682 films by 943 users (Harper and Konstan, 2015).

    Its terms forbid passing it on, so it is always fetched from GroupLens (or a folder or mirror of yours
    that holds `movielens100k/ml-100k.zip`).
    """
    with zipfile.ZipFile(locate("movielens100k/ml-100k.zip")) as archive:
        data = np.loadtxt(io.BytesIO(archive.read("ml-100k/u.data")), dtype=np.int64)
        films = [line.split("|") for line in archive.read("ml-100k/u.item").decode("latin-1").splitlines()]
    user, item, rating, time = torch.from_numpy(data).T.contiguous()
    genres = torch.tensor([[float(flag) for flag in film[5:]] for film in films])
    return Ratings(user - 1, item - 1, rating.float(), time, genres, [film[1] for film in films])
