"""What an untrusted worker could learn: measurements on transcripts, and pages that show them."""
