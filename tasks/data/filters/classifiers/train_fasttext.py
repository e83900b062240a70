"""The process that trains a fastText classifier: `python train_fasttext.py OPTIONS MODEL`, options as JSON.

The classifier stage runs this as a file, in an environment of its own.
"""

import json
import sys

import fasttext

if __name__ == "__main__":
    options, model = json.loads(sys.argv[1]), sys.argv[2]
    # One thread: with several, equal examples give different weights.
    fasttext.train_supervised(verbose=0, thread=1, **options).save_model(model)
