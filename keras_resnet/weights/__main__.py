"""`python -m keras_resnet.weights [NETWORK]` prints the published sets as a Markdown table."""

import sys

from keras_resnet.errors import unknown_name
from keras_resnet.weights import list_weights

if __name__ == "__main__":
    variants = list(dict.fromkeys(row.variant for row in list_weights()))
    for name in sys.argv[1:]:
        if name not in variants:
            sys.exit(str(unknown_name("network", name, variants)))
    for name in sys.argv[1:] or [None]:
        print(list_weights(name))
