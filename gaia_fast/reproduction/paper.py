"""The paper's figures, in per cent: FPR95 (ID positive) and AUROC, by method or row, and by OOD set."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Figure(NamedTuple):
    """FPR95 with ID positive, and AUROC, in per cent; None where the paper has none."""

    fpr95: float | None
    auroc: float


Figures = Mapping[str, Mapping[str, Figure]]  # by method or row, and by OOD set

CIFAR_SETS = ("svhn", "tinyimagenet", "lsun", "places", "textures")
IMAGENET_SETS = ("inaturalist", "sun", "places", "textures")
AVERAGE = "average"


def _read(sets: tuple[str, ...], text: str, *, only_auroc: bool = False) -> Figures:
    """A line for each method: its name, and FPR95 and AUROC on each set, two spaces or more between them."""
    found = {}
    for line in text.strip().splitlines():
        name, *words = re.split(r"\s{2,}", line.strip())
        values = [float(word) for word in words]
        pairs = [(None, each) for each in values] if only_auroc else list(zip(values[::2], values[1::2], strict=True))
        found[name] = {each: Figure(*pair) for each, pair in zip(sets, pairs, strict=True)}
    return found


TABLE_1: Mapping[str, Figures] = {
    "resnet34_cifar10": _read(
        CIFAR_SETS,
        """
    msp          61.03  89.01  53.11  85.79  46.79  90.63  43.71  91.88  48.28  90.08
    odin         50.74  92.09  39.82  92.62  33.34  94.17  36.53  93.18  45.00  91.11
    energy       42.87  91.20  37.76  92.98  34.25  93.85  38.34  92.44  45.73  90.26
    mahalanobis  22.19  93.36  29.35  90.16  25.31  91.89  28.61  91.26  39.34  87.02
    react        24.60  92.39  33.68  89.71  19.15  93.78  23.69  92.78  32.61  89.27
    gradnorm     62.47  76.08  73.00  65.21  59.38  72.97  58.93  75.36  67.77  67.41
    knn          32.03  95.28  29.56  95.44  27.42  95.92  41.77  93.26  35.41  94.87
    rankfeat     84.58  72.99  50.20  89.84  41.63  91.97  67.79  82.64  68.12  80.67
    ash          23.11  95.53  29.78  93.71  22.72  95.33  25.27  94.35  30.92  93.08
    gaia-z        2.47  99.49   6.26  98.63   2.48  99.43   2.27  99.50   2.84  99.36
    gaia-a       14.44  97.12  16.45  97.07   9.10  98.10  11.06  97.82  12.62  97.54
    """,
    ),
    "wrn_40_2_cifar10": _read(
        CIFAR_SETS,
        """
    msp          40.51  92.70  50.05  86.99  38.90  91.34  45.41  89.58  56.42  84.57
    odin         16.11  96.91  44.18  89.66  33.37  93.45  40.30  91.31  51.51  87.71
    energy       19.94  95.80  41.70  90.04  37.95  91.44  44.88  89.67  55.89  84.58
    mahalanobis  21.63  94.99  42.86  89.77  46.87  86.58  45.39  89.47  48.06  88.65
    react        20.05  95.87  41.32  90.29  37.81  91.57  44.28  89.77  54.88  85.54
    gradnorm     49.60  80.45  82.23  59.60  78.17  63.55  81.70  59.72  82.93  58.05
    knn          27.52  95.55  38.14  93.44  38.95  94.30  45.79  90.65  50.37  90.77
    rankfeat     60.02  72.03  72.33  63.24  52.17  83.24  78.43  61.27  86.22  51.97
    ash          19.94  95.80  41.70  90.04  37.96  91.44  44.53  89.75  55.69  84.71
    gaia-z        4.05  99.17  53.31  90.59  12.40  97.92   7.76  98.59  12.30  97.34
    gaia-a       18.34  96.51  30.98  94.54  12.73  97.70  16.94  96.84  14.93  97.15
    """,
    ),
    "resnet34_cifar100": _read(
        CIFAR_SETS,
        """
    msp          86.21  74.13  75.21  79.31  83.58  72.80  87.19  70.60  82.00  74.46
    odin         89.34  70.21  70.00  81.44  83.80  71.37  88.10  67.69  81.81  72.66
    energy       87.55  73.91  73.46  79.83  84.38  72.58  88.53  70.17  82.54  74.69
    mahalanobis  88.71  73.72  75.70  79.57  88.28  71.63  78.54  79.74  82.63  73.78
    react        77.53  83.17  71.18  78.60  73.36  84.37  78.41  80.12  72.06  82.54
    gradnorm     90.70  65.95  80.12  61.44  82.62  58.10  92.29  64.35  85.89  52.48
    knn          73.34  80.06  69.24  82.17  76.98  78.36  86.76  71.53  79.95  69.24
    rankfeat     92.94  65.55  87.46  74.98  90.84  70.65  90.77  72.68  86.72  73.99
    ash          81.21  79.46  74.26  81.17  82.84  74.93  85.49  72.91  79.70  77.33
    gaia-z       15.73  97.06  63.85  89.17  33.33  94.18  16.78  97.17  15.82  97.09
    gaia-a       68.02  89.03  68.61  83.33  71.24  86.37  73.15  86.25  63.81  87.12
    """,
    ),
    "wrn_40_2_cifar100": _read(
        CIFAR_SETS,
        """
    msp          83.44  79.85  76.94  77.84  76.68  80.32  85.81  72.50  83.42  74.94
    odin         80.64  82.34  78.50  76.41  74.43  81.95  84.57  74.58  82.36  76.51
    energy       84.58  79.72  76.77  77.90  76.32  80.45  86.13  72.35  83.95  74.83
    mahalanobis  82.36  81.07  82.95  79.20  74.76  81.16  82.44  76.06  83.72  76.93
    react        75.04  82.36  76.09  75.83  66.64  83.06  77.94  78.18  77.66  78.33
    gradnorm     85.27  69.22  86.58  67.75  81.10  62.38  87.01  52.89  89.41  51.30
    knn          46.88  88.97  70.88  82.86  68.92  76.83  83.57  69.64  60.41  83.66
    rankfeat     80.39  77.10  94.58  52.35  91.63  61.89  86.83  67.71  88.00  67.36
    ash          81.20  80.99  76.24  77.92  74.78  81.06  84.81  73.78  81.97  76.12
    gaia-z       15.19  97.19  87.06  73.42  37.97  91.59  25.64  95.26  27.29  94.05
    gaia-a       35.49  93.60  53.37  89.86  33.52  93.86  27.62  95.37  31.44  94.16
    """,
    ),
}

TABLE_2 = _read(
    IMAGENET_SETS,
    """
    msp          63.69  87.59  79.98  78.34  81.44  76.76  82.73  74.45
    odin         62.69  89.36  71.67  83.92  76.27  80.67  81.31  76.30
    energy       64.91  88.48  65.33  85.32  73.02  81.37  80.87  75.79
    mahalanobis  96.34  46.33  88.43  65.20  89.75  64.46  52.23  72.10
    react        44.52  91.81  52.71  90.16  62.66  87.83  70.73  76.85
    knn          59.08  86.20  69.53  80.10  77.09  74.87  11.56  97.18
    rankfeat     46.54  81.49  27.88  92.18  38.26  88.34  46.06  89.33
    ash          22.22  96.15  35.43  92.53  47.73  89.61  23.33  95.43
    gradnorm     50.03  90.33  46.48  89.03  60.86  84.82  61.42  81.07
    gaia-a       29.47  93.52  31.24  92.42  48.55  88.94  40.41  92.71
    gaia-z       65.09  84.15  64.23  84.31  71.02  81.16  11.32  97.93
    """,
)

# By the fusion of GAIA-A.
TABLE_3 = _read(
    IMAGENET_SETS,
    """
    top1      74.44  74.04  77.30  77.60  82.07  71.11  50.14  89.57
    output    47.50  92.54  69.87  84.47  74.52  82.00  76.17  78.83
    inner     59.45  81.98  52.24  86.51  62.74  80.20  52.45  89.77
    division  29.47  93.52  31.24  92.42  48.55  88.94  40.41  92.71
    """,
)

# Averages over the sets, by method and blocks.
TABLE_4: Mapping[str, Figures] = {
    "resnet34_cifar10": _read(
        (AVERAGE,),
        """
    gaia-a block 1     64.52  83.28
    gaia-z block 1     57.15  67.06
    gaia-a block 2     62.19  86.26
    gaia-z block 2     50.71  86.69
    gaia-a block 3     44.56  91.07
    gaia-z block 3     22.17  95.71
    gaia-a block 4     12.90  97.54
    gaia-z block 4      6.42  98.75
    gaia-a blocks 3+4  12.70  97.53
    gaia-z blocks 3+4   3.55  99.26
    gaia-a all blocks  12.73  97.53
    gaia-z all blocks   3.26  99.28
    """,
    ),
    "resnet34_cifar100": _read(
        (AVERAGE,),
        """
    gaia-a block 1     77.89  79.72
    gaia-z block 1     58.38  66.46
    gaia-a block 2     77.30  80.50
    gaia-z block 2     52.40  86.96
    gaia-a block 3     71.28  84.67
    gaia-z block 3     44.18  89.01
    gaia-a block 4     69.16  86.40
    gaia-z block 4     49.97  91.28
    gaia-a blocks 3+4  68.98  86.42
    gaia-z blocks 3+4  27.86  95.24
    gaia-a all blocks  68.98  86.42
    gaia-z all blocks  29.05  94.92
    """,
    ),
    "bit_s_r101x1": _read(
        (AVERAGE,),
        """
    gaia-a block 1     86.59  61.26
    gaia-z block 1     92.38  49.62
    gaia-a block 2     87.21  58.39
    gaia-z block 2     88.56  58.64
    gaia-a block 3     63.34  80.81
    gaia-z block 3     73.28  78.96
    gaia-a block 4     37.42  91.90
    gaia-z block 4     52.92  86.89
    gaia-a blocks 3+4  41.91  91.03
    gaia-z blocks 3+4  58.39  86.91
    gaia-a all blocks  42.38  90.86
    gaia-z all blocks  63.28  86.02
    """,
    ),
}

TABLE_5 = _read(
    IMAGENET_SETS,
    """
    lee-alregib  72.30  82.61  74.00  84.16
    gradnorm     90.33  89.03  84.82  81.07
    exgrad       76.90  66.60  68.90  65.10
    gaia-a       93.52  92.42  88.94  92.71
    gaia-z       84.15  84.31  81.16  97.93
    """,
    only_auroc=True,
)

TAKE_BATCHES = ("gaia-a", "gaia-z")  # as Table 5 has it
