//! Where the file of a unix socket really is.

use std::path::Path;
use std::sync::Arc;

/// The path with its directory's links followed (`/var/run` is `/run` on most hosts), so that a server's name for its
/// socket and an application's are the same. As it stands when the directory cannot be looked up: it is in another mount
/// namespace, or not there yet.
pub fn real(path: &str) -> Arc<str> {
    let whole = Path::new(path);
    let resolved = || {
        let directory = whole.parent()?.canonicalize().ok()?;
        Some(directory.join(whole.file_name()?).to_str()?.into())
    };
    resolved().unwrap_or_else(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_directory_are_followed_and_what_is_not_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("run")).unwrap();
        std::os::unix::fs::symlink("run", base.join("var")).unwrap();
        let path = |rest: &str| base.join(rest).to_str().unwrap().to_owned();
        assert_eq!(*real(&path("var/.s.PGSQL.5432")), path("run/.s.PGSQL.5432"));
        assert_eq!(*real(&path("none/.s.PGSQL.5432")), path("none/.s.PGSQL.5432"));
        assert_eq!(&*real(""), "");
    }
}
