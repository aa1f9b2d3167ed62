"""Speed and memory of fmcli and its peers, on the same work, in one run; and what its speed costs in accuracy.

    make bench                                  everything, on the CPU; takes hours
    python -m benchmarks.run --works roy-1 mell-cnn --peers fmcli keras --repeats 3
    python -m benchmarks.table benchmarks/results/cpu.json

README.md here says what else is measured, by which module, and what it gave. How it is measured:

- Each peer runs in a process of its own, anew for each repeat. For each piece of work all peers take their turn
  before the next repeat begins, and the one that goes first changes, so that a machine that slows down slows all alike.
- All get the same images, network, batch size, optimizer, learning rate, cores and threads; but the peers train
  `quick` by AdamW instead of Muon, which is less work. A network is converted from the recipe's list of layers; a test
  compares the numbers of parameters.
- Training is timed after a warm-up, for some seconds and at least five steps. fmcli is timed in its own training loop,
  and does what its recipes say beyond that: a learning rate for each step, the average of the weights, saved states.
  The peers are spared those.
- Keras is timed by epochs, since a callback after each step would slow it down; its progress bar is off.
- What is reported is the median over repeats, and ratios of medians. The shares of the machine's limits are those of
  the operations and bytes in `works`, against the fastest matrix product and copy measured in the same run.
- The seconds until an accuracy is reached are of training alone; the accuracy is that of the test images, by which
  nothing is chosen.
"""
