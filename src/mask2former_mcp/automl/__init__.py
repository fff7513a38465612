"""A study over durable jobs: search space, sampler and pruner, budget, leaderboard, winner."""
