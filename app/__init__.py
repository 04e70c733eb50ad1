"""What a person sees: pages over the lab's store. Imports starfish_lab, never the other way round, and never torch."""
