"""Will it be faster? Told before anything runs, from layer times that were measured on a device. An estimate, and called one.

    recording     the pieces a network runs through, and what each takes         (torch)
    layer_times   the table: every distinct piece, timed on a device             (torch; job kind 'layer_times')
    pieces        a piece: kind, shape, work                                     (from here on no torch)
    shapes        what an execution leaves of every piece, from a profile
    times         the table as a function: shape → time, measured or interpolated
    predict       two lists of pieces and a table → speed-up with an interval
    reasons       why it is so, in words
    card          all of it for a page
    score         predictions beside measured latency

The rule, in words: a pass takes the sum of its pieces' times and what it takes beside them; the speed-up is that of the dense network over
that of what the execution leaves. A piece whose shape was timed takes the time measured; one whose shape was not takes a straight line in its
arithmetic and the bytes it moves, fitted to the pieces of its kind, times how far its nearest measured neighbours lie off that line. The interval
is what this misses by on the passes that were timed as a whole, each predicted without its own pieces.
"""
