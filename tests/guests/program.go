// A guest in Go: program CODE FILE, or program panic.
package main

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	if os.Args[1] == "panic" {
		panic("as asked")
	}
	fmt.Println("args", os.Args[1:])
	fmt.Println("env", os.Environ())
	content, err := os.ReadFile(os.Args[2])
	if err != nil {
		fmt.Println(err)
	}
	fmt.Print("file ", string(content))

	sum := 0
	var lock sync.Mutex
	var group sync.WaitGroup
	for i := range 100 {
		group.Add(1)
		go func() {
			defer group.Done()
			lock.Lock()
			defer lock.Unlock()
			sum += i
		}()
	}
	group.Wait()
	fmt.Println("goroutines", sum)

	time.Sleep(time.Millisecond)
	fmt.Fprintln(os.Stderr, "slept")
	code, _ := strconv.Atoi(os.Args[1])
	os.Exit(code)
}
