"""What happens to every node: protections, policies, integers, claims, costs."""
