//! Writes the files that are generated from the API types; `make crds` runs it.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, content) in flotilla_crds::files::generated() {
        let file = root.join(&path);
        if std::fs::read_to_string(&file).is_ok_and(|old| old == content) {
            continue;
        }
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&file, content)?;
        println!("wrote {path}");
    }
    Ok(())
}
