"""Networks, training, evaluation, and the callback that runs a defense after training."""
