//! The routes for people, and how an error is answered.
