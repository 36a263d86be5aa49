//! Twelve made-up records, loaded only when an administrator asks for them. No real person is meant.

use marcato_guest::access::{Error, NewSubject, Permission, SubjectKind};

use crate::App;
use crate::problem::Problem;

type Row = (&'static str, SubjectKind, &'static str, &'static str, bool, bool);

const RECORDS: [Row; 12] = [
    ("1001", SubjectKind::Patient, "Anna Beispiel", "Made-up record. Ward 7, routine check.", true, false),
    ("1002", SubjectKind::Patient, "Bruno Muster", "Made-up record. Ward 7, after surgery.", true, false),
    ("1003", SubjectKind::Patient, "Clara Probst", "Made-up record. Day clinic.", true, false),
    ("1004", SubjectKind::Patient, "David Ohnesorg", "Made-up record. Ward 3.", false, false),
    ("1005", SubjectKind::Doctor, "Dr. Eva Modell", "Made-up record. Cardiology.", true, true),
    ("1006", SubjectKind::Doctor, "Dr. Farid Entwurf", "Made-up record. Surgery, read only.", true, false),
    ("1007", SubjectKind::Patient, "Greta Vorlage", "Made-up record. Out-patient.", true, false),
    ("1008", SubjectKind::Patient, "Hugo Attrappe", "Made-up record. Ward 3.", true, false),
    ("1009", SubjectKind::Staff, "Ines Schablone", "Made-up record. Reception.", true, false),
    ("1010", SubjectKind::Doctor, "Dr. Jonas Skizze", "Made-up record. On leave: no right.", false, false),
    ("1011", SubjectKind::Patient, "Katja Platzhalter", "Made-up record. Ward 7.", true, false),
    ("1012", SubjectKind::Staff, "Leo Dummy", "Made-up record. Records office.", true, true),
];

/// Adds the records with a key each (that nobody sees: rotate it to get one). Those whose id is taken stay
/// as they are.
pub(crate) fn load(app: &App, actor: &str) -> Result<(), Problem> {
    for (id, kind, name, description, read, write) in RECORDS {
        let subject = NewSubject {
            id: id.to_owned(),
            kind,
            name: name.to_owned(),
            description: description.to_owned(),
            permission: Permission { read, write },
        };
        match app.register.add_subject(actor, &subject) {
            Ok(_) => {
                app.register.issue_key(actor, id)?;
            }
            Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
