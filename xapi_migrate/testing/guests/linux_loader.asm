; Boots a Linux kernel that lies on the disk's first sectors.    nasm -f bin -o linux_loader.bin linux_loader.asm
;
; No file system: linux.py writes the pieces one after another and their places into the table below. The
; kernel's real-mode part, with its header filled in and the command line behind it, goes to 0x10000; every other
; piece goes to its own address above 1 MiB, 64 sectors at a time through a buffer.

REAL_MODE equ 0x1000                    ; segment of the real-mode part
BUFFER    equ 0x3000                    ; segment of the buffer
CHUNK     equ 64                        ; sectors
STACK     equ 0xdf00                    ; in the real-mode part's segment, below the command line

        bits 16
        org 0x7c00

        jmp 0:entry
entry:  cli
        xor ax, ax
        mov ds, ax
        mov ss, ax
        mov sp, 0x7c00
        mov [drive], dl
        sti
        mov word [packet.count], REAL_SECTORS
        mov word [packet.segment], REAL_MODE
        mov dword [packet.lba], 1
        call read
        mov word [packet.count], CHUNK
        mov word [packet.segment], BUFFER
        mov bp, pieces
.piece: mov ecx, [ds:bp + 4]            ; sectors left
        mov edi, [ds:bp + 8]
        mov eax, [ds:bp]
        mov [packet.lba], eax
.chunk: test ecx, ecx
        jle .next
        push ecx
        push edi
        call read
        pop edi
        cli
        lgdt [gdt_register]             ; "unreal" DS and ES: real mode with a limit of 4 GiB
        mov eax, cr0
        inc ax
        mov cr0, eax
        mov bx, 8
        mov ds, bx
        mov es, bx
        dec ax
        mov cr0, eax
        xor bx, bx
        mov ds, bx
        mov es, bx
        mov esi, BUFFER * 16
        mov ecx, CHUNK * 512 / 4
        cld
        a32 rep movsd
        sti
        add dword [packet.lba], CHUNK
        pop ecx
        sub ecx, CHUNK
        jmp .chunk
.next:  add bp, 12
        cmp bp, pieces.end
        jb .piece
        cli
        mov ax, REAL_MODE
        mov ds, ax
        mov es, ax
        mov fs, ax
        mov gs, ax
        mov ss, ax
        mov sp, STACK
        jmp REAL_MODE + 0x20:0

read:   mov ah, 0x42
        mov dl, [drive]
        mov si, packet
        int 0x13
        jc failed
        ret

failed: mov si, words
.next:  lodsb
        test al, al
        jz .stop
        mov dx, 0x3f8
        out dx, al
        jmp .next
.stop:  hlt
        jmp .stop

words:          db "E the disk cannot be read", 10, 0
drive:          db 0
packet:         db 16, 0
.count:         dw 0
.offset:        dw 0
.segment:       dw 0
.lba:           dd 0, 0
gdt_register:   dw 15
                dd gdt
gdt:            dq 0
                dw 0xffff, 0, 0x9200, 0x00cf

REAL_SECTORS equ 116                    ; up to 0xe800 in the segment: the command line is at 0xe000

        times 0x1e0 - ($ - $$) db 0
pieces:         dd 0, 0, 0              ; 0x1e0  kernel: first sector, sectors, address
                dd 0, 0, 0              ; 0x1ec  initial memory disk: the same
.end:
        times 510 - ($ - $$) db 0
        dw 0xaa55
