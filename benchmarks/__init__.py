"""Measure the speed, memory and time to accuracy of fmcli and its peers on the same tasks.

    make bench                                  all benchmarks on the CPU; takes hours
    python -m benchmarks.run --works roy-1 mell-cnn --peers fmcli keras --repeats 3
    python -m benchmarks.table benchmarks/results/cpu.json

README.md in this folder lists all benchmarks. docs/performance.md has the results. Method:

- Each repeat of each peer runs in a new process. All peers run a task once before the next repeat starts, and a
  different peer goes first in each repeat, so that a slow phase of the machine affects all peers.
- All peers use the same images, network, batch size, optimizer, learning rate, cores and threads. The exception is
  `quick`: the peers train it with AdamW instead of Muon, which is less work. Networks are converted from the recipe's
  list of layers; a test compares the numbers of parameters.
- Training is timed after a warm-up, for some seconds and at least five steps. fmcli runs its own training loop and
  everything that the recipe asks for: a learning rate per step, averaged weights, saved states. The peers omit these.
- Keras is timed by epoch, because a callback after each step would slow it down. Its progress bar is off.
- Results are medians over repeats, and ratios of medians. The shares of the machine's limits divide the operations and
  bytes in `works` by the fastest matrix product and copy measured in the same run.
- The time to accuracy includes only training. It uses the accuracy on the test images, which decides nothing.
"""
