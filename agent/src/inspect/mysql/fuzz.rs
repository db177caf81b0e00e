//! Rows of MySQL's views under any bytes.

use super::sessions::{self, Cells, Names};

/// Rows by lines, cells by tabs; `\N` is a null, as `mysqldump` writes it.
pub(crate) fn rows(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let cell = |it: &str| (it != "\\N").then(|| it.to_owned());
    let rows: Vec<Cells> = text.lines().map(|line| Cells(line.split('\t').map(cell).collect())).collect();
    let named = sessions::names(&rows).into_iter().map(|it| (it.to_owned(), vec![[10, 0, 0, 9].into()]));
    let names: Names = named.collect();
    for sees in [false, true] {
        if let Ok(all) = sessions::read(&rows, &names, sees, true) {
            assert!(all.len() <= rows.len());
            for it in &all {
                assert!(it.user.len() <= 63 && it.database.len() <= 63);
                assert!(it.statement.as_ref().is_none_or(|it| it.len() <= 400));
            }
        }
    }
    assert!(super::version(&text).len() <= 28);
}
