"""The link to a worker elsewhere: gRPC."""
