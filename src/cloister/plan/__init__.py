"""The decision for every node: protections, policies, integers, claims, costs."""
