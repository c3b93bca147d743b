// lib/pq: transactions, prepared statements, COPY, cancel, LISTEN.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lib/pq"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(holds bool, what string) {
	if !holds {
		must(errors.New(what))
	}
}

func state(err error) string {
	var told *pq.Error
	if errors.As(err, &told) {
		return string(told.Code)
	}
	return ""
}

func exec(database *sql.DB, text string, values ...interface{}) {
	_, err := database.Exec(text, values...)
	must(err)
}

func main() {
	const settings = "sslmode=disable"
	database, err := sql.Open("postgres", settings)
	must(err)
	exec(database, "drop table if exists libpq_go")
	exec(database, "create table libpq_go (id int primary key, name text)")

	tx, err := database.Begin()
	must(err)
	_, err = tx.Exec("insert into libpq_go values ($1, $2)", 1, "one")
	must(err)
	must(tx.Commit())
	tx, err = database.Begin()
	must(err)
	_, err = tx.Exec("insert into libpq_go values (2, 'two')")
	must(err)
	must(tx.Rollback())

	statement, err := database.Prepare("select $1::int + 1")
	must(err)
	done := make(chan error)
	for client := 0; client < 20; client++ {
		go func() {
			for n := 0; n < 20; n++ {
				var got int
				if err := statement.QueryRow(n).Scan(&got); err != nil || got != n+1 {
					done <- fmt.Errorf("prepared: %v %v", got, err)
					return
				}
			}
			done <- nil
		}()
	}
	for client := 0; client < 20; client++ {
		must(<-done)
	}
	_, err = database.Exec("insert into libpq_go values (1, 'again')")
	check(state(err) == "23505", "duplicate")

	tx, err = database.Begin()
	must(err)
	copied, err := tx.Prepare(pq.CopyIn("libpq_go", "id", "name"))
	must(err)
	for n := 100; n < 600; n++ {
		_, err = copied.Exec(n, "copied")
		must(err)
	}
	_, err = copied.Exec()
	must(err)
	must(copied.Close())
	must(tx.Commit())
	var count int
	must(database.QueryRow("select count(*) from libpq_go").Scan(&count))
	check(count == 501, "copied")

	limited, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	began := time.Now()
	_, err = database.ExecContext(limited, "select pg_sleep(30)")
	cancel()
	check(err != nil && time.Since(began) < 20*time.Second, "not cancelled")

	listener := pq.NewListener(settings, time.Second, time.Minute, nil)
	must(listener.Listen("libpq_go"))
	exec(database, "notify libpq_go, 'hello'")
	select {
	case heard := <-listener.Notify:
		check(heard != nil && heard.Extra == "hello", "notified")
	case <-time.After(20 * time.Second):
		check(false, "no notification")
	}
	must(listener.UnlistenAll())
	must(listener.Close())
	must(database.Close())
	fmt.Println("ok")
}
