"""Where proto-tokens lie and what they know about their text.

Nothing here is needed to fit or to decode. All of it takes proto-tokens that were fitted before.

    paths  profiles  connecting  curves  curve_descent    paths between solutions, and curves of low loss
    distances  text_distances  teacher  separation        how near solutions and texts are
    changes  robustness                                   noise, scaling, rounding, projection; what remains right
    swaps  probes  attention  generation                  what e and m each do
    alignment                                             solutions that follow a teacher
"""
